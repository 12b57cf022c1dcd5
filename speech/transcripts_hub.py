"""Speech of data sets of the hub (and of local parquet that `datasets` reads), streamed into rows and sounds.

A run draws utterances in any order and asks how long they are, a stream knows neither. So what is streamed is kept in
memory, compressed as it came (an hour takes about 30 MB as MP3, 60 MB as FLAC), and `limit` says how much of it.
"""

from dataclasses import asdict, replace
from pathlib import Path

from multimodal.data.hub import Row as HubRow
from multimodal.data.hub import check_columns, media_source, stream_split
from multimodal.errors import UserError
from speech.transcript_rows import (
    AUDIO_NAMES,
    DEFAULT_COLUMNS,
    TEXT_NAMES,
    Languages,
    Row,
    SpeechColumns,
    first_of,
    language_name,
    says_something,
)
from speech.utterance import BytesSound, FileSound, Sound

LAYOUTS = {
    "Common Voice, CoVoST 2": SpeechColumns("audio", "sentence", language="locale", speaker="client_id"),
    "VoxPopuli": SpeechColumns("audio", "normalized_text", speaker="speaker_id"),
    "FLEURS": SpeechColumns("audio", "transcription"),
    "LibriSpeech": SpeechColumns("audio", "text", speaker="speaker_id"),
}
"""Columns of published data sets; copies of them under other names have the same."""


def read_speech_hub(
    name: str, *, split: str, columns: SpeechColumns = DEFAULT_COLUMNS, subset: str = "", limit: int = 0
) -> list[tuple[Row, Sound]]:
    """Stream the rows of a split that have sound and a text or a translation.

    Args:
        name: as on the hub, or a local folder.
        split: its name; dev, val and validation mean the same.
        columns: names that differ from the defaults are taken before those of `LAYOUTS`.
        subset: the configuration, where the data set has several.
        limit: stop after so many rows; 0 = read all.

    Raises:
        UserError: not found, no such split or column (it lists those found), or no usable row.
    """
    found, rows = stream_split(name, split=split, subset=subset or None)
    kept: list[tuple[Row, Sound]] = []
    names: SpeechColumns | None = None
    for index, item in enumerate(rows):
        if limit and len(kept) >= limit:
            break
        names = names or _names(columns, item, name)
        source = media_source(item[names.audio])
        row = _row(item, names, f"{found}-{index}", f"data set {name!r}, {found} row {index}")
        if source is not None and says_something(row):
            kept.append((row, FileSound(source) if isinstance(source, Path) else BytesSound(source, row.audio)))
    if not kept:
        raise UserError(f"data set {name!r}, split {found!r}: no row with sound and text")
    return kept


def _names(columns: SpeechColumns, row: HubRow, name: str) -> SpeechColumns:
    """The columns asked for, the rest as the first layout that fits has them."""
    usual = SpeechColumns(first_of(AUDIO_NAMES, row), first_of(TEXT_NAMES, row))
    layout = next((known for known in LAYOUTS.values() if known.audio in row and known.text in row), usual)
    asked = {field: said for field, said in asdict(columns).items() if said != getattr(DEFAULT_COLUMNS, field)}
    names = replace(layout, **asked)
    check_columns(row, (names.audio, names.text, *filter(None, asked.values())), name)
    return names


def _row(item: HubRow, names: SpeechColumns, audio: str, where: str) -> Row:
    def said(column: str) -> str:
        value = item.get(column)
        return str(value).strip() if isinstance(value, str | int) else ""

    return Row(
        where=where,
        audio=audio,
        text=said(names.text),
        translation=said(names.translation),
        language=said(names.language),
        task=said(names.task),
        speaker=said(names.speaker),
    )


def languages_of(subset: str, given: Languages) -> Languages:
    """The languages that a configuration names: de_en those of text and translation, de or pt_br that of the text;
    else those given."""
    text, _, translation = subset.partition("_")
    return Languages(_language(text) or given.text, _language(translation) or given.translation)


def _language(code: str) -> str:
    name = language_name(code)
    return "" if name == code else name
