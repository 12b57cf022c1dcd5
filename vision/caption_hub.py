"""Data sets of the hub (and local parquet or picture folders that `datasets` reads), streamed into caption records."""

from pathlib import Path
from typing import Any

from multimodal.data.tables import split_names
from multimodal.errors import UserError
from vision.caption_tables import DEFAULT_COLUMNS, CaptionRecord, Columns, ImageSource


def read_hub(
    name: str,
    *,
    split: str | None = None,
    columns: Columns = DEFAULT_COLUMNS,
    subset: str | None = None,
    limit: int | None = None,
) -> list[CaptionRecord]:
    """Stream a data set. Pictures stay the compressed bytes that they came as: a broken one is noticed when it is used.

    Args:
        name: as on the hub, or a local folder.
        split: its name; dev, val and validation mean the same. May be left out where there is one split only.
        columns: the picture's column, the caption's (a text or a list of texts) and optionally the question's.
        subset: the configuration, where the data set has several.
        limit: stop after so many records; everything read stays in memory.

    Raises:
        UserError: not found, no such split or column (it lists those found), or no usable row.
    """
    import datasets  # slow to import, and most runs read local tables

    try:
        parts = datasets.load_dataset(name, subset, streaming=True)
    except Exception as error:  # not found, no network, gated, a broken file: each has a class of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"data set {name!r} cannot be read ({reason}); expected a folder, a file or a hub name"
        ) from error
    wanted = split_names(split) if split else tuple(parts) if len(parts) == 1 else ()
    found = next((part for part in wanted if part in parts), None)
    if found is None:
        raise UserError(f"data set {name!r}: no split {split or 'given'!r}; splits found: {', '.join(map(str, parts))}")
    data = parts[found]
    if data.features and isinstance(data.features.get(columns.image), datasets.Image):
        data = data.cast_column(columns.image, datasets.Image(decode=False))
    records: list[CaptionRecord] = []
    try:
        for index, item in enumerate(data):
            if limit is not None and len(records) >= limit:
                break
            for column in (columns.image, columns.caption):
                if column not in item:
                    raise UserError(f"data set {name!r}: no column {column!r}; columns found: {', '.join(item)}")
            captions, image = _captions(item[columns.caption]), _image(item[columns.image])
            if captions and image is not None:
                question = str(item.get(columns.question) or "").strip()
                records.append(CaptionRecord(image, captions, f"{found}-{index}", question))
    except (OSError, ValueError) as error:
        raise UserError(f"data set {name!r}: reading stopped after {len(records)} rows ({error})") from error
    if not records:
        raise UserError(f"data set {name!r}, split {found!r}: no row with a picture and a caption")
    return records


def _captions(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def _image(value: Any) -> ImageSource | None:
    if isinstance(value, dict):  # an image column that was not decoded
        if value.get("bytes"):
            return value["bytes"]
        path = value.get("path")
        if path and not Path(path).is_file():  # a remote file that was not fetched yet
            import datasets

            return datasets.Image().decode_example(value)
        return Path(path) if path else None
    return Path(value) if isinstance(value, str) else value
