"""Tables (TSV, CSV) and JSONL manifests that name media files, whatever the media; and the names of splits."""

import csv
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from multimodal.errors import UserError

SPLIT_NAMES = (("train", "training"), ("dev", "val", "valid", "validation"), ("test", "testing"))


def split_names(split: str) -> tuple[str, ...]:
    """Names that mean the same split, the given one first: dev -> dev, val, valid, validation."""
    names = next((names for names in SPLIT_NAMES if split in names), ())
    return (split, *(name for name in names if name != split))


def is_all_of_split(table: Path, split: str | None, *, named_after: str | None = None, declared: bool) -> bool:
    """Whether every line of a table is of a split, because the file is named after it: train.tsv, for train.

    Args:
        split: None asks for all lines, whatever the file is called.
        named_after: what counts as its name; None: that of the file.
        declared: whether the lines name splits themselves.

    Raises:
        UserError: it is named after another split, and its lines name none: to divide it would be to test on what is
            learnt.
    """
    name = table.stem if named_after is None else named_after
    if split is None or name in split_names(split):
        return split is not None
    if not declared and any(name in names for names in SPLIT_NAMES):
        raise UserError(
            f"{table}: named after split {name!r}; expected a table for {split!r} beside it, a column that names "
            "splits, or another file name, to have it divided"
        )
    return False


def hashed_split(name: str) -> str:
    """The split of a medium whose table names none: 90 % train, 5 % dev, 5 % test, by its name alone."""
    part = zlib.crc32(name.encode()) % 100
    return "train" if part < 90 else "dev" if part < 95 else "test"


def read_text(path: Path, *, expected: str) -> str:
    """A text file in UTF-8, with or without byte-order mark; `expected` ends the message, as in "expected a table".

    Raises:
        UserError: missing, unreadable, or of another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; expected a text file in UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {expected}") from error


def table_delimiter(text: str) -> str:
    """A tab in the first line makes a table TSV."""
    return "\t" if "\t" in text.split("\n", 1)[0] else ","


def read_table(
    path: Path, text: str, *, required: Sequence[str], optional: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of a table with a header; other columns are left out.

    Names of columns ignore upper and lower case. The last required column holds free text: where it is the last of the
    table too, it may hold delimiters.

    Args:
        path: for messages.
        text: the whole table.
        required, optional: names of columns.

    Raises:
        UserError: a column is missing, or a line has too few or too many cells.
    """
    delimiter = table_delimiter(text)
    cells = table_cells(text)
    if not cells:
        raise UserError(f"{path}: empty; expected a table with the columns {' and '.join(required)}")
    header = [name.strip().lower() for name in cells[0][1]]
    where = {key: header.index(key.lower()) for key in (*required, *optional) if key.lower() in header}
    for key in required:
        if key not in where:
            raise UserError(f"{path}: no column {key!r}; columns found: {', '.join(cells[0][1]).strip() or 'none'}")
    rows = []
    for line, row in cells[1:]:
        if len(row) > len(header) and where[required[-1]] == len(header) - 1:  # commas in a text without quotes
            row = [*row[: len(header) - 1], delimiter.join(row[len(header) - 1 :])]
        if len(row) != len(header):
            raise UserError(f"{path}, line {line}: {len(row)} cells; expected {len(header)} ({', '.join(header)})")
        rows.append((line, {key: unquoted(row[index]).strip() for key, index in where.items()}))
    return rows


def table_cells(text: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of the lines of a table that are not blank, the header's among them."""
    delimiter = table_delimiter(text)
    if delimiter == ",":
        reader = csv.reader(io.StringIO(text), strict=True)
        try:
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
        except csv.Error:
            pass  # texts with quotation marks of their own: one line is one row then
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.split(delimiter)) for number, line in lines if line.strip()]


def unquoted(cell: str) -> str:
    """A cell as it was meant: without the quotation marks around it, the doubled ones in it single."""
    inner = cell[1:-1]
    quoted = len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell


def parse_json(text: str, where: str) -> Any:
    """JSON, or a `UserError` that says where it is none."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None


def manifest_lines(path: Path, *, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of a JSONL manifest.

    Raises:
        UserError: the file cannot be read, or a line is no JSON object.
    """
    for number, line in enumerate(read_text(path, expected=expected).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        item = parse_json(line, where)
        if not isinstance(item, dict):
            raise UserError(f"{where}: found {line.strip()[:40]!r}; expected a JSON object")
        yield number, item


def manifest_texts(item: dict[str, Any], where: str, *keys: str) -> tuple[str, ...]:
    """The text or list of texts under the first of the keys that is there.

    Raises:
        UserError: something else stands there.
    """
    key = next((key for key in keys if item.get(key) is not None), None)
    if key is None:
        return ()
    value = item[key]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{where}: {key!r} is {str(item[key])[:40]!r}; expected a text or a list of texts")
    return tuple(value.strip() for value in values if value.strip())
