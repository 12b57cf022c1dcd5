"""Questions about clips on disk -> `QuestionedClip`s: a table or a JSONL manifest beside the clips, or a public layout.

    clips = read_clips("data/msvd-qa", split="train")

Each reader turns its format into rows; `assemble_clips` alone groups them by clip, finds the files and applies splits.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from multimodal.data.tables import hashed_split, manifest_lines, read_text, split_names, table_cells, unquoted
from multimodal.errors import UserError
from vision.clip_captions import CLIP_PROMPT
from vision.clip_question import ClipQuestion, QuestionedClip

log = logging.getLogger(__name__)

CLIP_SUFFIXES = ("", ".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif", ".mpg")
CLIP_FOLDERS = ("", "videos", "video", "clips", "Videos", "YouTubeClips", "NExTVideo", "TrainValVideo", "TestVideo")
OPTION_SEPARATOR = "|"
TABLE_EXPECTED = "expected a table of questions about clips"


@dataclass(frozen=True)
class ClipRow:
    """What one line or entry says: the names that its clip may have, a question, the split if the file tells."""

    where: str
    names: tuple[str, ...]
    question: ClipQuestion
    split: str | None = None


def assemble_clips(
    rows: Iterable[ClipRow], source: Path, *, split: str | None, folders: Iterable[Path]
) -> list[QuestionedClip]:
    """Group rows by clip, keep those of the split, find the files. Clips that are not there are left out with a warning
    (of the public sets some always are).

    Args:
        source: for error messages.
        split: None keeps all. Rows that name no split at all are divided by the clip's name, 90 / 5 / 5 %.
        folders: where clips may be.

    Raises:
        UserError: no row, no row of the split, or not one clip.
    """
    found = list(rows)
    if not found:
        raise UserError(f"{source}: no questions in it; expected at least one clip with a question and an answer")
    if split is not None:
        declared = sorted({row.split for row in found if row.split})
        wanted = split_names(split)
        found = [row for row in found if (row.split if declared else hashed_split(row.names[0])) in wanted]
        if not found:
            expected = ", ".join(declared) or "none named, and too few clips to divide"
            raise UserError(f"{source}: no clips of split {split!r}; splits found: {expected}")
    groups: dict[tuple[str, ...], list[ClipRow]] = {}
    for row in found:
        groups.setdefault(row.names, []).append(row)
    roots = [folder / below for folder in folders for below in CLIP_FOLDERS if (folder / below).is_dir()]
    clips, absent = [], []
    for names, group in groups.items():
        file = _locate(names, roots)
        if file is None:
            absent.append(group[0])
        else:
            clips.append(QuestionedClip(file, tuple(row.question for row in group), names[0]))
    if not clips:
        places = ", ".join(map(str, roots))
        raise UserError(f"{absent[0].where}: clip {absent[0].names[0]!r} not found, nor any other; looked in {places}")
    if absent:
        log.warning("%s: %d clips not found and left out, the first is %r", source, len(absent), absent[0].names[0])
    return clips


def _locate(names: Iterable[str], roots: Iterable[Path]) -> Path | None:
    try:
        files = (root / f"{name}{suffix}" for name in names for root in roots for suffix in CLIP_SUFFIXES)
        return next((file for file in files if file.is_file() or file.is_dir()), None)
    except (OSError, ValueError):  # not a possible file name
        return None


def question_of(values: Mapping[str, Any], where: str) -> ClipQuestion:
    """The question of a row of a table (texts) or of a manifest (texts, numbers, lists).

    Keys: `question` (without it `caption` or `answer` describes the clip), `answer` or `answers`, or an option's number
    or letter; `options` (a list, or texts between "|") or `a0`, `a1` ...; `kind` or `type`.

    Raises:
        UserError: no answer, or one that is not among the options.
    """
    question = str(values.get("question") or "").strip()
    given = values.get("answers") or values.get("answer")
    if given is None and not question:
        given = values.get("captions") or values.get("caption")
    answers = tuple(
        str(answer).strip() for answer in (given if isinstance(given, list) else [given]) if answer not in (None, "")
    )
    if not answers:
        raise UserError(f"{where}: no answer; keys found: {', '.join(map(str, values))}")
    kind = str(values.get("kind") or values.get("type") or "").strip()
    return with_options(ClipQuestion(kind, question or CLIP_PROMPT, answers[0], also_right=answers[1:]), values, where)


def with_options(question: ClipQuestion, values: Mapping[str, Any], where: str) -> ClipQuestion:
    """The question with the options that its row offers, if any, and with an option's text for its number or letter."""
    numbered = {int(str(key)[1:]): values[key] for key in values if re.fullmatch(r"a\d{1,3}", str(key))}
    given = values.get("options") or [numbered.get(number, "") for number in range(max(numbered, default=-1) + 1)]
    texts = given.split(OPTION_SEPARATOR) if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise UserError(f"{where}: options {texts!r}; expected a list, or texts with {OPTION_SEPARATOR!r} between")
    listed = [str(text).strip() for text in texts]
    options = tuple(dict.fromkeys(text for text in listed if text))
    if not options:
        return question
    if len(options) > len(ascii_lowercase):
        raise UserError(f"{where}: {len(options)} options; expected at most {len(ascii_lowercase)}, one a letter")
    answer = question.answer
    if answer not in options or numbered or isinstance(values.get("answer"), int):
        # Numbers and letters count options as they stand, the equal and empty ones among them.
        number = int(answer) if answer.isdecimal() else ascii_lowercase.find(answer.lower()) if len(answer) == 1 else -1
        told = listed[number] if 0 <= number < len(listed) else answer
        if told not in options:
            raise UserError(f"{where}: answer {answer!r} is not among the options {', '.join(options)}")
        answer = told
    return ClipQuestion(question.kind, question.question, answer, options=options, also_right=question.also_right)


def table_clip_rows(path: Path) -> list[ClipRow]:
    """Rows of a TSV or CSV table with a header: `video` and the columns of `question_of`, `split` if there are splits.

    Raises:
        UserError: no column `video`, or a line with too few or too many cells.
    """
    cells = table_cells(read_text(path, expected=TABLE_EXPECTED))
    header = [name.strip().lower() for name in cells[0][1]] if cells else []
    if "video" not in header:
        raise UserError(f"{path}: no column 'video'; columns found: {', '.join(header) or 'none'}")
    rows = []
    for line, row in cells[1:]:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} cells; expected {len(header)} ({', '.join(header)})")
        cells_of = ((key, unquoted(cell.strip()).strip()) for key, cell in zip(header, row, strict=True))
        values = {key: cell for key, cell in cells_of if cell}
        if "video" in values:
            rows.append(ClipRow(where, (values["video"],), question_of(values, where), values.get("split")))
    return rows


def manifest_clip_rows(path: Path) -> list[ClipRow]:
    """Rows of a JSONL manifest: one object a line, `video` with the keys of `question_of`, `split` if there are splits.

    Raises:
        UserError: a line that is no JSON object, or lacks clip or answer.
    """
    rows = []
    for number, values in manifest_lines(path, expected=TABLE_EXPECTED):
        where = f"{path}, line {number}"
        if not isinstance(values.get("video"), str):
            raise UserError(f"{where}: keys found: {', '.join(values)}; expected 'video'")
        rows.append(ClipRow(where, (values["video"],), question_of(values, where), values.get("split")))
    return rows


ClipReader = Callable[[Path], list[ClipRow]]
TABLE_READERS: dict[str, ClipReader] = {
    ".jsonl": manifest_clip_rows,
    ".tsv": table_clip_rows,
    ".csv": table_clip_rows,
}
