"""Public video question sets in the layouts in which they are published, and the one door to all clips on disk.

| set | files beside the clips |
| --- | --- |
| MSVD-QA, MSRVTT-QA | `train_qa.json`, `val_qa.json`, `test_qa.json`; MSVD's clips also by `youtube_mapping.txt` |
| NExT-QA | `train.csv`, `val.csv`, `test.csv` with a0 ... a4 or an answer in words; `map_vid_vidorID.json` |
| ActivityNet-QA | `train_q.json` and `train_a.json`, and so on |
| PerceptionTest | `mc_question_train.json`, `mc_question_valid.json`, or `all_train.json`, `all_valid.json` |
| GRID | `transcripts.tsv` (id, split, text) and `clips/` |
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from multimodal.data.tables import is_all_of_split, parse_json, read_text, split_names
from multimodal.errors import UserError
from vision.clip_question import QuestionedClip
from vision.clip_tables import (
    TABLE_EXPECTED,
    TABLE_READERS,
    ClipReader,
    ClipRow,
    assemble_clips,
    question_of,
    table_clip_rows,
)
from vision.grid import grid_rows

_PUBLISHED = re.compile(r"(?:mc_question_|all_)?([a-z]+?)(?:_qa|_q)?")
"""What the tables of the public sets are called, around the name of the split."""


def read_clips(source: str | Path, *, split: str | None = None) -> list[QuestionedClip]:
    """Clips with questions, from

    - a folder in the layout of a public set (see above);
    - a folder with `{train,dev,test}.jsonl`, `.tsv` or `.csv`, or with one such table, `questions.*` first;
    - such a table itself (`vision.clip_tables.question_of` says which columns or keys it may have).

    Clips are looked for beside the table and in the usual folders there.

    Args:
        split: train, dev or test; None reads all. A table without splits is divided by the clip's name, 90 / 5 / 5 %.

    Raises:
        UserError: one line that names the file, what was found there and what was expected.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        reader, table = _find_layout(path, split)
        folder = path
    else:
        reader, table, folder = TABLE_READERS.get(path.suffix), path, path.parent
        if reader is None or not path.is_file():
            raise UserError(
                f"{path}: no such table or folder; expected a folder of clips, or {', '.join(TABLE_READERS)}"
            )
    rows, named = reader(table), _PUBLISHED.fullmatch(table.stem)
    whole = is_all_of_split(
        table, split, named_after=named[1] if named else None, declared=any(row.split for row in rows)
    )
    return assemble_clips(rows, table, split=None if whole else split, folders=(folder, folder.parent))


def _find_layout(folder: Path, split: str | None) -> tuple[ClipReader, Path]:
    if (folder / "transcripts.tsv").is_file():
        return grid_rows, folder / "transcripts.tsv"
    names = split_names(split) if split else ("train", "test")
    for name in names:
        layouts: dict[str, ClipReader] = {
            f"{name}_qa.json": msvd_rows,
            f"{name}_q.json": activitynet_rows,
            f"mc_question_{name}.json": perception_rows,
            f"all_{name}.json": perception_rows,
            f"{name}.csv": nextqa_rows,
        }
        layouts |= {f"{name}{suffix}": reader for suffix, reader in TABLE_READERS.items() if suffix != ".csv"}
        for file, reader in layouts.items():
            if (folder / file).is_file():
                return reader, folder / file
    tables = sorted(file for file in folder.iterdir() if file.suffix in TABLE_READERS)
    named = [file for file in tables if file.stem == "questions"] or tables
    if len(named) == 1:
        return TABLE_READERS[named[0].suffix], named[0]
    listed = ", ".join(table.name for table in tables) or "none"
    raise UserError(f"{folder}: no questions about clips for split {split or 'given'!r}; tables found: {listed}")


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON list, and where each is."""
    entries = parse_json(read_text(path, expected=TABLE_EXPECTED), str(path))
    if not isinstance(entries, list):
        raise UserError(f"{path}: a {type(entries).__name__}; expected a list of questions")
    for number, entry in enumerate(entries):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: found {str(entry)[:40]!r}; expected an object")
        yield where, entry


def _get(entry: dict[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise UserError(f"{where}: no {key!r}; keys found: {', '.join(entry) or 'none'}")
    return entry[key]


def msvd_rows(path: Path) -> list[ClipRow]:
    """MSVD-QA (`video_id` 1 is the clip vid1 or the name that the mapping has for it) and MSRVTT-QA (video1)."""
    mapping = path.parent / "youtube_mapping.txt"
    pairs = (
        (line.split() for line in read_text(mapping, expected=TABLE_EXPECTED).split("\n")) if mapping.is_file() else ()
    )
    names = {pair[1]: pair[0] for pair in pairs if len(pair) == 2}
    rows = []
    for where, entry in _entries(path):
        number = _get(entry, "video_id", where)
        own = f"vid{number}"
        rows.append(ClipRow(where, (own, f"video{number}", names.get(own, str(number))), question_of(entry, where)))
    return rows


def activitynet_rows(path: Path) -> list[ClipRow]:
    """ActivityNet-QA: questions in one file, answers in the other; a clip's file begins with "v_"."""
    other = path.with_name(path.name.replace("_q.json", "_a.json"))
    answers = {_get(entry, "question_id", where): entry for where, entry in _entries(other)}
    rows = []
    for where, entry in _entries(path):
        answer = answers.get(_get(entry, "question_id", where))
        if answer is None:
            raise UserError(f"{where}: no answer to question {entry['question_id']!r} in {other.name}")
        video = str(_get(entry, "video_name", where))
        rows.append(
            ClipRow(where, (f"v_{video}", video), question_of({**answer, "question": entry.get("question")}, where))
        )
    return rows


def perception_rows(path: Path) -> list[ClipRow]:
    """PerceptionTest: one object a clip, with options and the number of the right one."""
    videos = parse_json(read_text(path, expected=TABLE_EXPECTED), str(path))
    if not isinstance(videos, dict):
        raise UserError(f"{path}: a {type(videos).__name__}; expected an object with one entry a clip")
    rows = []
    for video, entry in videos.items():
        asked_of = entry.get("mc_question", ()) if isinstance(entry, dict) else None
        if not isinstance(asked_of, list | tuple) or not all(isinstance(asked, dict) for asked in asked_of):
            raise UserError(f"{path}, {video}: no object with a list of questions 'mc_question'; expected one a clip")
        for number, asked in enumerate(asked_of):
            where = f"{path}, {video}, question {number}"
            values = {
                "question": _get(asked, "question", where),
                "options": _get(asked, "options", where),
                "answer": _get(asked, "answer_id", where),
                "kind": asked.get("area", ""),
            }
            rows.append(ClipRow(where, (video,), question_of(values, where)))
    return rows


def nextqa_rows(path: Path) -> list[ClipRow]:
    """NExT-QA, with options or open; clips by number, or where the map to VidOR's folders says."""
    mapping = path.parent / "map_vid_vidorID.json"
    folders = parse_json(read_text(mapping, expected=TABLE_EXPECTED), str(mapping)) if mapping.is_file() else {}
    if not isinstance(folders, dict):
        raise UserError(f"{mapping}: a {type(folders).__name__}; expected an object with the folder of each clip")
    rows = table_clip_rows(path)
    return [
        ClipRow(row.where, (*row.names, *filter(None, [folders.get(row.names[0])])), row.question, row.split)
        for row in rows
    ]
