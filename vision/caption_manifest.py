"""JSONL manifests -> rows: one object a line with a picture and captions, question and answers, or a conversation."""

import json
from pathlib import Path
from typing import Any

from multimodal.errors import UserError
from vision.caption_tables import Columns, Row, read_text

USER_ROLES = ("user", "human")
ASSISTANT_ROLES = ("assistant", "gpt")


def manifest_rows(path: Path, columns: Columns) -> list[Row]:
    """Rows of a manifest. Each line has

    - `image` (a name) or `images` (several), and
    - `caption`, or `captions` (a list), or `question` with `answer` or `answers`, or `conversations` / `messages`:
      turns with `from` / `role` and `value` / `content`. Each question of a conversation becomes a row of its own,
      without the turns before it.

    Raises:
        UserError: a line that is no JSON object, or lacks picture or text; it names the line and the keys found.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            item = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error}); expected one JSON object a line") from error
        if not isinstance(item, dict):
            raise UserError(f"{where}: found {line.strip()[:40]!r}; expected a JSON object")
        images = _strings(item, where, columns.image, "images")
        if not images:
            raise UserError(f"{where}: no {columns.image!r} or 'images'; keys found: {', '.join(item) or 'none'}")
        pairs = [(question, answers) for question, answers in _texts(item, where, columns) if answers]
        if not pairs:
            raise UserError(
                f"{where}: no {columns.caption!r}, 'captions', 'question' with 'answer', 'conversations' or 'messages';"
                f" keys found: {', '.join(item)}"
            )
        split = item.get(columns.split)
        rows += [Row(number, images, answers, question, str(split) if split else None) for question, answers in pairs]
    return rows


def _strings(item: dict[str, Any], where: str, *keys: str) -> tuple[str, ...]:
    """The text or list of texts under the first of the keys that is there."""
    key = next((key for key in keys if item.get(key) is not None), None)
    if key is None:
        return ()
    value = item[key]
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{where}: {key!r} is {str(item[key])[:40]!r}; expected a text or a list of texts")
    return tuple(value.strip() for value in values if value.strip())


def _texts(item: dict[str, Any], where: str, columns: Columns) -> list[tuple[str, tuple[str, ...]]]:
    """(question, answers) pairs; a caption answers the empty question."""
    turns = item.get("conversations") or item.get("messages")
    if turns is not None:
        return _turns(turns, where)
    question = " ".join(_strings(item, where, columns.question))
    keys = ("answer", "answers") if question else (columns.caption, "captions")
    return [(question, _strings(item, where, *keys))]


def _turns(turns: Any, where: str) -> list[tuple[str, tuple[str, ...]]]:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{where}: a conversation that is not a list of turns; expected objects with role and content")
    pairs, question = [], ""
    for turn in turns:
        role = turn.get("from") or turn.get("role")
        text = _turn_text(turn.get("value") or turn.get("content") or "")
        if role in USER_ROLES:
            question = text
        elif role in ASSISTANT_ROLES:
            pairs.append((question, (text,) if text else ()))
    return pairs


def _turn_text(content: Any) -> str:
    """The words of a turn; the picture's place in it is lost (pictures go before the question)."""
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return " ".join(str(content).replace("<image>", " ").split())
