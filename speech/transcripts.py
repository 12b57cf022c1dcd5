"""Recordings with transcripts, whatever they come as: a table, a manifest, LibriSpeech, GRID.

`read_transcripts` is the one door to them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from multimodal.data.tables import (
    hashed_split,
    manifest_lines,
    manifest_texts,
    read_table,
    read_text,
    split_names,
    table_delimiter,
)
from multimodal.errors import UserError
from speech.audio import AUDIO_SUFFIXES
from speech.fsdd import is_fsdd, read_fsdd
from speech.grid import grid_sentence, is_grid_name, read_align
from speech.utterance import FileSound, SpeechTask, Utterance

TABLE_SUFFIXES = (".tsv", ".csv", ".jsonl")
AUDIO_FOLDERS = ("clips", "audio", "wav", "wavs", "recordings")
EXPECTED = "expected a transcript table"
AUDIO_NAMES = ("audio", "path", "file", "file_name", "audio_filepath", "id")
TEXT_NAMES = ("text", "sentence", "transcript", "transcription")


@dataclass(frozen=True)
class SpeechColumns:
    """Names of the columns (tables) or keys (JSONL); empty: the first of the usual ones that is there."""

    audio: str = ""
    text: str = ""
    language: str = "language"
    task: str = "task"
    """transcribe, translate, or dialogue (what is said, to be replied to as the decoder does); empty: transcribe."""
    speaker: str = "speaker"
    split: str = "split"


DEFAULT_COLUMNS = SpeechColumns()


@dataclass(frozen=True)
class _Row:
    """What one line says; the sound by its name, and empty what it does not say."""

    where: str
    audio: str
    text: str
    language: str = ""
    task: str = ""
    speaker: str = ""
    split: str = ""


def read_transcripts(
    source: str | Path,
    *,
    split: str,
    columns: SpeechColumns = DEFAULT_COLUMNS,
    language: str = "English",
    speaker: str = "",
) -> list[Utterance]:
    """Read the utterances of a split from

    - a table (TSV, CSV) with columns for sound and text (Common Voice's is one), or a JSONL manifest;
    - a folder with `{train,dev,test}.tsv` or one table; sounds beside it or in `clips/`, `audio/` ...;
    - a folder as FSDD, LibriSpeech (`*.trans.txt`) or GRID (clips whose names spell sentences) have it.

    Args:
        split: a set that names no splits is divided by the sounds' names, 90 / 5 / 5 %.
        language: of texts that do not say theirs.
        speaker: to be held out, for data sets that name speakers by file.

    Raises:
        UserError: one line that names the file, what was found there and what was expected.
    """
    path = Path(source).expanduser()
    if path.is_dir() and is_fsdd(path):
        return read_fsdd(path, split=split, speaker=speaker)
    table = _find_table(path, split) if path.is_dir() else path
    if table is None:
        rows, named = _rows_of_folder(path), path
    elif table.suffix not in TABLE_SUFFIXES or not table.is_file():
        raise UserError(f"{table}: {'not a table' if table.is_file() else 'no such file or folder'}; {EXPECTED}")
    else:
        rows, named = _table_rows(table, columns), table
    whole = table is not None and table.stem in split_names(split)
    rows = rows if whole else _of_split(rows, split, named)
    if speaker:
        rows = [row for row in rows if (row.speaker == speaker) == (split == "test")]
    if not rows:
        raise UserError(f"{named}: no utterances of split {split!r}; expected at least one line with sound and text")
    roots = _roots(path if table is None else table.parent)
    return [_utterance(row, roots, language) for row in rows]


def _find_table(folder: Path, split: str) -> Path | None:
    names = [
        f"{name}{suffix}" for name in (*split_names(split), "transcripts", "metadata") for suffix in TABLE_SUFFIXES
    ]
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    tables = sorted(path for path in folder.iterdir() if path.suffix in TABLE_SUFFIXES)
    return found or (tables[0] if len(tables) == 1 else None)


def _table_rows(table: Path, columns: SpeechColumns) -> list[_Row]:
    optional = (columns.language, columns.task, columns.speaker, columns.split)
    if table.suffix == ".jsonl":
        lines = manifest_lines(table, expected=EXPECTED)
        return [_manifest_row(item, f"{table}, line {number}", columns) for number, item in lines]
    text = read_text(table, expected=EXPECTED)
    header = [name.strip().lower() for name in text.split("\n", 1)[0].split(table_delimiter(text))]
    audio = columns.audio or _first(AUDIO_NAMES, header)
    said = columns.text or _first(TEXT_NAMES, header)
    rows = read_table(table, text, required=(audio, said), optional=optional)
    return [
        _Row(f"{table}, line {number}", cells[audio], cells[said], *(cells.get(name, "") for name in optional))
        for number, cells in rows
        if cells[audio]
    ]


def _first(names: Sequence[str], header: Sequence[str]) -> str:
    """The first of the names that is there; else the first, which the message will then ask for."""
    return next((name for name in names if name in header), names[0])


def _manifest_row(item: dict[str, object], where: str, columns: SpeechColumns) -> _Row:
    def text(*keys: str) -> str:
        return " ".join(manifest_texts(item, where, *keys))

    audio = text(*([columns.audio] if columns.audio else AUDIO_NAMES))
    if not audio:
        raise UserError(f"{where}: no {columns.audio or AUDIO_NAMES[0]!r}; keys found: {', '.join(item) or 'none'}")
    said = text(*([columns.text] if columns.text else TEXT_NAMES))
    return _Row(
        where, audio, said, *(text(k) for k in (columns.language, columns.task, columns.speaker, columns.split))
    )


def _rows_of_folder(folder: Path) -> list[_Row]:
    """LibriSpeech's transcripts, or the clips of GRID."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such file or folder; {EXPECTED}")
    rows = [row for path in sorted(folder.rglob("*.trans.txt")) for row in _librispeech_rows(path, folder)]
    rows = rows or list(_grid_rows(folder))
    if not rows:
        raise UserError(f"{folder}: no transcripts found; {EXPECTED} (TSV, CSV or JSONL) there")
    return rows


def _librispeech_rows(path: Path, folder: Path) -> Iterator[_Row]:
    for number, line in enumerate(read_text(path, expected=EXPECTED).splitlines(), start=1):
        name, _, text = line.partition(" ")
        if name:
            audio = (path.parent / name).relative_to(folder)
            yield _Row(f"{path}, line {number}", str(audio), text, speaker=name.split("-")[0])


def _grid_rows(folder: Path) -> Iterator[_Row]:
    aligned = {path.stem: path for path in folder.rglob("*.align")}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and is_grid_name(path.stem):
            text = read_align(aligned[path.stem]) if path.stem in aligned else grid_sentence(path.stem)
            yield _Row(str(path), str(path.relative_to(folder)), text)


def _of_split(rows: list[_Row], split: str, path: Path) -> list[_Row]:
    declared = sorted({row.split for row in rows if row.split})
    wanted = split_names(split)
    kept = [row for row in rows if (row.split if declared else hashed_split(row.audio)) in wanted]
    if not kept:
        raise UserError(
            f"{path}: no utterances of split {split!r}; splits found: {', '.join(declared) or 'none named'}"
        )
    return kept


def _roots(folder: Path) -> list[Path]:
    beside = [base / name for base in (folder, folder.parent) for name in AUDIO_FOLDERS]
    return [root for root in (folder, *beside) if root.is_dir()]


def _utterance(row: _Row, roots: Sequence[Path], language: str) -> Utterance:
    task = row.task or "transcribe"
    if task not in get_args(SpeechTask):
        raise UserError(f"{row.where}: task {task!r}; expected transcribe, translate or dialogue")
    names = [row.audio, *(row.audio + suffix for suffix in AUDIO_SUFFIXES)]
    found = next((root / name for name in names for root in roots if (root / name).is_file()), None)
    # A missing file is a broken sample like any other: reading it says so, with its name.
    sound = FileSound(found or roots[0] / row.audio)
    return Utterance(
        sound=sound,
        text=row.text,
        id=row.audio,
        language=row.language or language,
        task=cast(SpeechTask, task),
        speaker=row.speaker,
    )
