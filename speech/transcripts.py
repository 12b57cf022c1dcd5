"""Recordings with transcripts, whatever they come as: a table, a manifest, LibriSpeech, GRID, a data set of the hub.

`read_transcripts` is the one door to them.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from multimodal.data.tables import (
    hashed_split,
    is_all_of_split,
    manifest_lines,
    manifest_texts,
    read_table,
    read_text,
    split_names,
    table_cells,
    unquoted,
)
from multimodal.data.word_times import WORD_TIMES
from multimodal.errors import UserError
from multimodal.hub_names import is_hub_name
from speech.audio import AUDIO_SUFFIXES
from speech.fsdd import is_fsdd, read_fsdd
from speech.grid import grid_sentence, is_grid_name, read_align
from speech.transcript_rows import (
    AUDIO_NAMES,
    DEFAULT_COLUMNS,
    ENGLISH,
    TEXT_NAMES,
    Languages,
    Row,
    SpeechColumns,
    first_of,
    says_something,
    utterances_of,
)
from speech.transcripts_hub import languages_of, read_speech_hub
from speech.utterance import FileSound, Sound, Utterance

log = logging.getLogger(__name__)

TABLE_SUFFIXES = (".tsv", ".csv", ".jsonl")
AUDIO_FOLDERS = ("clips", "audio", "wav", "wavs", "recordings")
COMMON_VOICE_NAMES = {"language": "locale", "speaker": "client_id"}
EXPECTED = "expected a transcript table"
_LIBRISPEECH_SPLIT = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?")


def read_transcripts(
    source: str | Path,
    *,
    split: str,
    columns: SpeechColumns = DEFAULT_COLUMNS,
    languages: Languages = ENGLISH,
    speaker: str = "",
    subset: str = "",
    limit: int = 0,
) -> list[Utterance]:
    """Read the utterances of a split from

    - a table (TSV, CSV) with columns for sound and text (Common Voice's and CoVoST's are), or a JSONL manifest;
    - a folder with `{train,dev,test}.tsv` or one table; sounds beside it or in `clips/`, `audio/` ...;
    - a folder as FSDD, LibriSpeech (`*.trans.txt`) or GRID (clips whose names spell sentences) have it;
    - a folder of parquet files, or the name of a data set of the hub, streamed into memory.

    Args:
        split: a set that names no splits is divided by the sounds' names, 90 / 5 / 5 %.
        languages: of texts and translations that do not say theirs.
        speaker: to be held out, for data sets that name speakers.
        subset: the configuration of a data set of the hub.
        limit: at most so many lines, the first ones; 0 = all.

    Raises:
        UserError: one line that names the file, what was found there and what was expected.
    """
    path = Path(source).expanduser()
    if path.is_dir() and is_fsdd(path):
        return read_fsdd(path, split=split, speaker=speaker)[: limit or None]
    if _is_for_datasets(path, split):
        found = read_speech_hub(str(path), split=split, columns=columns, subset=subset, limit=limit)
        languages = languages_of(subset, languages)
    else:
        found = _read_files(path, split, columns)
    if speaker:
        found = [(row, sound) for row, sound in found if (row.speaker == speaker) == (split == "test")]
    if not found:
        raise UserError(f"{source}: no utterances of split {split!r}; expected at least one line with sound and text")
    return [utterance for row, sound in found[: limit or None] for utterance in utterances_of(row, sound, languages)]


def _is_for_datasets(path: Path, split: str) -> bool:
    """Whether `datasets` is to read it: a folder with parquet and no table, or what is nothing here but may be a
    name of the hub."""
    if path.is_dir():
        return _find_table(path, split) is None and any(path.rglob("*.parquet"))
    return path.suffix not in TABLE_SUFFIXES and is_hub_name(str(path), owner=False)


def _read_files(path: Path, split: str, columns: SpeechColumns) -> list[tuple[Row, Sound]]:
    table = _find_table(path, split) if path.is_dir() else path
    if table is None:
        rows, named = _rows_of_folder(path), path
    elif table.suffix not in TABLE_SUFFIXES or not table.is_file():
        raise UserError(f"{table}: {'not a table' if table.is_file() else 'no such file or folder'}; {EXPECTED}")
    else:
        rows, named = _table_rows(table, columns), table
    whole = table is not None and is_all_of_split(table, split, declared=any(row.split for row in rows))
    roots = _roots(path if table is None else table.parent)
    return [(row, _sound(row, roots)) for row in (rows if whole else _of_split(rows, split, named))]


def _find_table(folder: Path, split: str) -> Path | None:
    names = [
        f"{name}{suffix}" for name in (*split_names(split), "transcripts", "metadata") for suffix in TABLE_SUFFIXES
    ]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    tables = sorted(p for p in folder.iterdir() if p.suffix in TABLE_SUFFIXES and p.name != WORD_TIMES)
    return found or (tables[0] if len(tables) == 1 else None)


def _table_rows(table: Path, columns: SpeechColumns) -> list[Row]:
    if table.suffix == ".jsonl":
        lines = manifest_lines(table, expected=EXPECTED)
        return _worded([_manifest_row(item, f"{table}, line {number}", columns) for number, item in lines], table)
    text = read_text(table, expected=EXPECTED)
    header = [unquoted(name).strip().lower() for _, names in table_cells(text)[:1] for name in names]
    audio = columns.audio or first_of(AUDIO_NAMES, header)
    said = columns.text or first_of(TEXT_NAMES, header)
    optional = [name if name in header else COMMON_VOICE_NAMES.get(name, name) for name in _optional(columns)]
    rows = read_table(table, text, required=(audio, said), optional=optional)
    found = [
        Row(f"{table}, line {number}", cells[audio], cells[said], *(cells.get(name, "") for name in optional))
        for number, cells in rows
        if cells[audio]
    ]
    return _worded(found, table)


def _worded(rows: list[Row], table: Path) -> list[Row]:
    """Those that say something, with a warning if there are others: speech is not to be learnt as silence."""
    found = [row for row in rows if says_something(row)]
    if len(found) < len(rows):
        log.warning("%s: %d lines without a text left out", table, len(rows) - len(found))
    return found


def _optional(columns: SpeechColumns) -> tuple[str, ...]:
    """In the order of the fields of `Row`."""
    return (columns.translation, columns.language, columns.task, columns.speaker, columns.split)


def _manifest_row(item: dict[str, object], where: str, columns: SpeechColumns) -> Row:
    def text(*keys: str) -> str:
        return " ".join(manifest_texts(item, where, *keys))

    audio = text(*([columns.audio] if columns.audio else AUDIO_NAMES))
    if not audio:
        raise UserError(f"{where}: no {columns.audio or AUDIO_NAMES[0]!r}; keys found: {', '.join(item) or 'none'}")
    if item.get("offset"):
        raise UserError(
            f"{where}: 'offset' {item['offset']}; expected a sound file for each line, parts are not cut out"
        )
    names = [columns.text] if columns.text else TEXT_NAMES
    if not any(name in item for name in (*names, columns.translation)):
        raise UserError(f"{where}: no {names[0]!r}; keys found: {', '.join(item)}")
    return Row(where, audio, text(*names), *map(text, _optional(columns)))


def _rows_of_folder(folder: Path) -> list[Row]:
    """LibriSpeech's transcripts, or the clips of GRID."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such file or folder; {EXPECTED}")
    rows = [row for path in sorted(folder.rglob("*.trans.txt")) for row in _librispeech_rows(path, folder)]
    rows = rows or list(_grid_rows(folder))
    if not rows:
        raise UserError(f"{folder}: no transcripts found; {EXPECTED} (TSV, CSV or JSONL) there")
    return rows


def _librispeech_rows(path: Path, folder: Path) -> Iterator[Row]:
    official = next((part for part in reversed(path.parts) if _LIBRISPEECH_SPLIT.fullmatch(part)), "")
    for number, line in enumerate(read_text(path, expected=EXPECTED).splitlines(), start=1):
        name, _, text = line.partition(" ")
        if name:
            audio = (path.parent / name).relative_to(folder)
            yield Row(f"{path}, line {number}", str(audio), text, speaker=name.split("-")[0], split=official)


def _grid_rows(folder: Path) -> Iterator[Row]:
    aligned = {path.stem: path for path in folder.rglob("*.align")}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and is_grid_name(path.stem):
            text = read_align(aligned[path.stem]) if path.stem in aligned else grid_sentence(path.stem)
            yield Row(str(path), str(path.relative_to(folder)), text)


def _of_split(rows: list[Row], split: str, path: Path) -> list[Row]:
    declared = sorted({row.split for row in rows if row.split})
    wanted = split_names(split)
    kept = [row for row in rows if _is_of(row.split if declared else hashed_split(row.audio), wanted)]
    if not kept:
        raise UserError(
            f"{path}: no utterances of split {split!r}; splits found: {', '.join(declared) or 'none named'}"
        )
    return kept


def _is_of(split: str, wanted: Sequence[str]) -> bool:
    """LibriSpeech's dev-clean and dev-other are dev."""
    return split in wanted or (bool(_LIBRISPEECH_SPLIT.fullmatch(split)) and split.split("-")[0] in wanted)


def _roots(folder: Path) -> list[Path]:
    beside = [base / name for base in (folder, folder.parent) for name in AUDIO_FOLDERS]
    return [root for root in (folder, *beside) if root.is_dir()]


def _sound(row: Row, roots: Sequence[Path]) -> FileSound:
    names = [row.audio, *(row.audio + suffix for suffix in AUDIO_SUFFIXES)]
    found = next((root / name for name in names for root in roots if (root / name).is_file()), None)
    # A missing file is a broken sample like any other: reading it says so, with its name.
    return FileSound(found or roots[0] / row.audio)
