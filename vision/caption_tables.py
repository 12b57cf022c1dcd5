"""Captions on disk -> records: TSV and CSV tables, Flickr8k's own files, JSONL manifests.

Each reader turns its format into rows; `assemble` alone groups them by picture, finds the files and applies the split.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from multimodal.data.tables import hashed_split, read_table, read_text, split_names, table_delimiter
from multimodal.errors import UserError

log = logging.getLogger(__name__)

ImageSource = Path | bytes | Image.Image
Missing = Literal["fail", "skip"]

IMAGE_FOLDERS = (
    "images",
    "Images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)  # the first of the two is the original's name
TABLE_EXPECTED = "expected a captions table"


@dataclass(frozen=True)
class CaptionRecord:
    """One picture with its captions, or with a question and the answers that count as right.

    Attributes:
        image: a file, the bytes of one, or a picture in memory.
        captions: at least one; the answers where there is a question.
        id: unique in its data set; for files the name as the table has it.
        question: what to ask about the picture; empty for captioning.
        more_images: the second and later pictures of a sample that shows several.
    """

    image: ImageSource
    captions: tuple[str, ...]
    id: str
    question: str = ""
    more_images: tuple[ImageSource, ...] = ()

    @property
    def images(self) -> tuple[ImageSource, ...]:
        return (self.image, *self.more_images)


@dataclass(frozen=True)
class Columns:
    """Names of the columns (tables, data sets of the hub) or keys (JSONL). Tables ignore upper and lower case."""

    image: str = "image"
    caption: str = "caption"
    question: str = "question"
    split: str = "split"


DEFAULT_COLUMNS = Columns()


@dataclass(frozen=True)
class Row:
    """What one line of a file says: pictures by name, captions, an optional question, the split if the file tells."""

    line: int
    images: tuple[str, ...]
    captions: tuple[str, ...]
    question: str = ""
    split: str | None = None


def assemble(
    rows: Iterable[Row], path: Path, *, split: str | None = None, images: Path | None = None, missing: Missing = "fail"
) -> list[CaptionRecord]:
    """Group rows by picture (and question), keep those of the split, find the picture files.

    Args:
        rows: from one of the readers.
        path: the file they came from, for error messages and as the place to look for pictures.
        split: None keeps all. Rows that name no split at all are divided by `hashed_split`.
        images: the folder of the pictures; else the table's folder and the usual ones beside it.
        missing: "skip" leaves out pictures that do not exist, with one warning.

    Raises:
        UserError: no row, no row of the split, a missing picture.
    """
    groups: dict[tuple[tuple[str, ...], str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.images, row.question), []).append(row)
    if not groups:
        raise UserError(f"{path}: no captions in it; expected at least one line with a picture and a caption")
    if split is not None:
        declared = Counter(row.split for group in groups.values() for row in group if row.split)
        if not declared:
            log.info("%s names no splits: taking %r of 90 %% train, 5 %% dev, 5 %% test by picture name", path, split)
        wanted = split_names(split)
        groups = {
            key: group
            for key, group in groups.items()
            if (group[0].split if declared else hashed_split(key[0][0])) in wanted
        }
        if not groups:
            found = ", ".join(sorted(declared)) or "none named, and too few pictures to divide"
            raise UserError(f"{path}: no pictures of split {split!r}; splits found: {found}")
    roots = _image_roots(path, images)
    records, absent, seen = [], [], Counter()
    for (names, question), group in groups.items():
        files = [_locate(name, roots) for name in names]
        absent += [(group[0].line, name) for name, file in zip(names, files, strict=True) if file is None]
        found = tuple(file for file in files if file is not None)
        if len(found) < len(names):
            continue
        seen[names[0]] += 1
        name = names[0] if seen[names[0]] == 1 else f"{names[0]}#{seen[names[0]]}"
        captions = tuple(caption for row in group for caption in row.captions)
        records.append(CaptionRecord(found[0], captions, name, question, found[1:]))
    if absent and (missing == "fail" or not records):
        line, name = absent[0]
        places = ", ".join(str(root) for root in roots)
        raise UserError(
            f"{path}, line {line}: picture {name!r} not found"
            f" ({len(absent)} missing, {len(records)} found); looked in {places}"
        )
    if absent:
        log.warning("%s: %d pictures not found and left out, the first is %r", path, len(absent), absent[0][1])
    return records


def _image_roots(table: Path, images: Path | None) -> list[Path]:
    if images is not None:
        if not images.is_dir():
            raise UserError(f"{images}: no such folder; expected the folder of the pictures that {table} names")
        return [images]
    beside = [base / folder for base in (table.parent, table.parent.parent) for folder in IMAGE_FOLDERS]
    return [folder for folder in (table.parent, *beside) if folder.is_dir()]


def _locate(name: str, roots: list[Path]) -> Path | None:
    try:
        return next((root / name for root in roots if (root / name).is_file()), None)
    except (OSError, ValueError):  # not a possible file name
        return None


def table_rows(path: Path, columns: Columns, splits: dict[str, str]) -> list[Row]:
    """Rows of a TSV or CSV table with a header, or of Flickr8k's `name.jpg#0<tab>caption` file.

    Args:
        path: the table; a tab in its first line makes it TSV.
        columns: which columns to read; others are ignored, question and split are optional.
        splits: picture name -> split, where separate files tell (Flickr8k); a split column goes first.

    Raises:
        UserError: a column is missing, or a line has too few or too many cells.
    """
    text = read_text(path, expected=TABLE_EXPECTED)
    name, mark, number = text.split("\n", 1)[0].split("\t")[0].rpartition("#")
    if table_delimiter(text) == "\t" and mark and name and number.isdigit():
        return _token_rows(path, text, splits)
    required, optional = (columns.image, columns.caption), (columns.question, columns.split)
    rows = []
    for line, values in read_table(path, text, required=required, optional=optional):
        image, caption = values[columns.image], values[columns.caption]
        if image and caption:
            split = values.get(columns.split) or splits.get(image)
            rows.append(Row(line, (image,), (caption,), values.get(columns.question, ""), split))
    return rows


def _token_rows(path: Path, text: str, splits: dict[str, str]) -> list[Row]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        key, tab, caption = line.partition("\t")
        image, mark, _ = key.rpartition("#")
        if not tab or not mark:
            raise UserError(f"{path}, line {number}: found {line[:40]!r}; expected name.jpg#0, a tab and a caption")
        if caption.strip():
            rows.append(Row(number, (image.strip(),), (caption.strip(),), split=splits.get(image.strip())))
    return rows


def flickr8k_splits(folder: Path) -> dict[str, str]:
    """Picture name -> split, from `Flickr_8k.{train,dev,test}Images.txt` in a folder; empty where there are none."""
    files = {split: folder / f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")}
    return {
        name.strip(): split
        for split, file in files.items()
        if file.is_file()
        for name in read_text(file, expected=TABLE_EXPECTED).split("\n")
        if name.strip()
    }
