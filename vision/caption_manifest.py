"""JSONL manifests -> rows: one object a line with a picture and captions, question and answers, or a conversation."""

from pathlib import Path
from typing import Any

from multimodal.data.tables import manifest_lines, manifest_texts
from multimodal.errors import UserError
from vision.caption_tables import TABLE_EXPECTED, Columns, Row

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
    for number, item in manifest_lines(path, expected=TABLE_EXPECTED):
        where = f"{path}, line {number}"
        images = manifest_texts(item, where, columns.image, "images")
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


def _texts(item: dict[str, Any], where: str, columns: Columns) -> list[tuple[str, tuple[str, ...]]]:
    """(question, answers) pairs; a caption answers the empty question."""
    turns = item.get("conversations") or item.get("messages")
    if turns is not None:
        return _turns(turns, where)
    question = " ".join(manifest_texts(item, where, columns.question))
    keys = ("answer", "answers") if question else (columns.caption, "captions")
    return [(question, manifest_texts(item, where, *keys))]


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
