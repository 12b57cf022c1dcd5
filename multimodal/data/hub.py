"""Data sets of the hub, and local folders that `datasets` reads (parquet, media with metadata), as rows that stream.

Media stay the compressed bytes that they came as: nothing is decoded here, so that a broken one is noticed when it is
used, and sound needs no torchcodec.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from multimodal.data.tables import split_names
from multimodal.errors import UserError

CONVERTED = "refs/convert/parquet"
"""Where the hub keeps a parquet copy of data sets that are scripts, which `datasets` no longer runs."""

Row = Mapping[str, Any]


def stream_split(name: str, *, split: str | None = None, subset: str | None = None) -> tuple[str, Iterator[Row]]:
    """A split's own name and its rows: columns with their values, media as `media_source` takes them, labels by name.

    Args:
        name: as on the hub, or a local folder.
        split: dev, val and validation mean the same. May be left out where there is one split only.
        subset: the configuration, where the data set has several.

    Raises:
        UserError: not found or not reached, no such split (it lists those found), or reading breaks off.
    """
    import datasets  # slow to import, and most runs read local tables

    try:
        parts = _load(name, subset)
    except Exception as error:  # not found, no network, gated, a broken file: each has a class of its own
        said = str(error).split("\nExample of usage")[0] or type(error).__name__
        reason = shorten(said, 400, placeholder=" ...")
        raise UserError(
            f"data set {name!r} cannot be read ({reason}); expected a folder, a file or a hub name"
        ) from error
    wanted = split_names(split) if split else tuple(parts) if len(parts) == 1 else ()
    found = next((part for part in wanted if part in parts), None)
    if found is None:
        raise UserError(f"data set {name!r}: no split {split or 'given'!r}; splits found: {', '.join(map(str, parts))}")
    data, labels = parts[found], {}
    for column, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image | datasets.Audio):
            data = data.cast_column(column, type(feature)(decode=False))
        elif isinstance(feature, datasets.ClassLabel):
            labels[column] = feature
    return str(found), _rows(data, labels, name)


def _load(name: str, subset: str | None) -> Mapping[Any, Any]:
    import datasets

    try:
        return datasets.load_dataset(name, subset, streaming=True)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        return datasets.load_dataset(name, data_dir=subset or "default", revision=CONVERTED, streaming=True)


def _rows(data: Any, labels: Mapping[str, Any], name: str) -> Iterator[Row]:
    count = 0
    try:
        for row in data:
            names = {column: label.int2str(row[column]) for column, label in labels.items() if row[column] is not None}
            yield row | names
            count += 1
    except (OSError, ValueError) as error:
        raise UserError(f"data set {name!r}: reading stopped after {count} rows ({error})") from error


def check_columns(row: Row, columns: Sequence[str], name: str) -> None:
    """Refuse a data set without these columns, by a row of it.

    Raises:
        UserError: it lacks one; the message lists those found.
    """
    for column in columns:
        if column not in row:
            raise UserError(f"data set {name!r}: no column {column!r}; columns found: {', '.join(row)}")


def media_source(value: Any) -> Path | bytes | None:
    """A picture or sound of a row as a file or its bytes; None where there is none.

    Raises:
        UserError: it lies elsewhere and cannot be fetched.
    """
    if isinstance(value, str):
        return Path(value)
    if not isinstance(value, dict):
        return None
    path = value.get("path")
    if value.get("bytes") or not path:
        return value.get("bytes") or None
    return Path(path) if Path(path).is_file() else _fetched(path)


def _fetched(address: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            return file.read()  # type: ignore[union-attr]
    except (OSError, ValueError) as error:
        raise UserError(f"{address}: cannot be fetched ({error}); expected a file of the data set") from error
