"""Data sets of the hub (and local parquet or picture folders that `datasets` reads), streamed into caption records."""

from typing import Any

from multimodal.data.hub import check_columns, media_source, stream_split
from multimodal.errors import UserError
from vision.caption_tables import DEFAULT_COLUMNS, CaptionRecord, Columns


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
    found, rows = stream_split(name, split=split, subset=subset)
    records: list[CaptionRecord] = []
    for index, row in enumerate(rows):
        if limit is not None and len(records) >= limit:
            break
        check_columns(row, (columns.image, columns.caption), name)
        captions, image = _captions(row[columns.caption]), media_source(row[columns.image])
        if captions and image is not None:
            question = str(row.get(columns.question) or "").strip()
            records.append(CaptionRecord(image, captions, f"{found}-{index}", question))
    if not records:
        raise UserError(f"data set {name!r}, split {found!r}: no row with a picture and a caption")
    return records


def _captions(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())
