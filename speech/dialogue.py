"""Spoken dialogue: speech is to be answered as the frozen decoder answers the same words in text (Llama 3 paper,
section 8.2 / spec B4, B5).

No labels but transcripts are needed: the decoder's own replies are the targets. Others would ask a frozen decoder to
speak as it does not speak.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from multimodal.data.tables import manifest_lines
from multimodal.errors import UserError
from multimodal.files import write_whole
from multimodal.messages import Message
from multimodal.model import MultimodalModel
from speech.utterance import Reply, Utterance

DialogueLoss = Literal["cross-entropy", "kl"]
"""How a reply is learnt: its tokens, or the decoder's whole distribution at each of them."""


def in_text(words: str) -> list[Message]:
    """The conversation in text that stands for a spoken one."""
    return [{"role": "user", "content": words}]


def text_replies(model: MultimodalModel, texts: Sequence[str], *, batch_size: int, **options: Any) -> dict[str, Reply]:
    """What the decoder replies to each text; like lengths are answered together. Options as in `generate`."""
    by_length = sorted(dict.fromkeys(texts), key=len)
    replies: dict[str, Reply] = {}
    for start in range(0, len(by_length), batch_size):
        part = by_length[start : start + batch_size]
        found = model.generate_ids([model.sample(in_text(text)) for text in part], **options)
        said = model.tokenizer.batch_decode(found, skip_special_tokens=True)
        replies |= {text: Reply(a.strip(), tuple(ids)) for text, a, ids in zip(part, said, found, strict=True)}
    return replies


def with_replies(
    model: MultimodalModel,
    utterances: Sequence[Utterance],
    *,
    max_new_tokens: int,
    kept: Path | None = None,
    batch_size: int = 32,
    **options: Any,
) -> list[Utterance]:
    """Utterances of dialogue get their replies, which may be empty; all others stay as they are.

    Args:
        max_new_tokens: a longer reply is cut, and then has no end of turn.
        kept: a file (JSONL) of the replies, which is read if it is there: a run that goes on has the same targets.
        options: those of `generate`; greedy search without any.

    Raises:
        UserError: `kept` holds replies of another decoder or to other texts.
    """
    texts = [u.text for u in utterances if u.task == "dialogue"]
    if not texts:
        return list(utterances)
    if kept is not None and kept.exists():
        replies = _read(kept, model, texts, max_new_tokens)
    else:
        replies = text_replies(model, texts, batch_size=batch_size, max_new_tokens=max_new_tokens, **options)
        if kept is not None:
            _write(kept, model, replies, max_new_tokens)
    return [replace(u, reply=replies[u.text]) if u.task == "dialogue" else u for u in utterances]


def without_empty_replies(utterances: Sequence[Utterance]) -> list[Utterance]:
    """What is worth learning: all but dialogue to which the decoder replies nothing.

    Raises:
        UserError: that is all dialogue that there is.
    """
    empty = [u for u in utterances if u.reply is not None and not u.reply.text]
    if empty and len(empty) == sum(u.task == "dialogue" for u in utterances):
        raise UserError(f"dialogue: the decoder replies nothing to any of {len(empty)} utterances; expected some reply")
    return [u for u in utterances if u.reply is None or u.reply.text]


def _origin(model: MultimodalModel, max_new_tokens: int) -> dict[str, Any]:
    """What replies depend on beside the texts."""
    return {"decoder_sha256": model.decoder.sha256(), "max_new_tokens": max_new_tokens}


def _write(file: Path, model: MultimodalModel, replies: Mapping[str, Reply], max_new_tokens: int) -> None:
    lines = [_origin(model, max_new_tokens), *({"said": said} | asdict(reply) for said, reply in replies.items())]
    write_whole(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _read(file: Path, model: MultimodalModel, texts: Sequence[str], max_new_tokens: int) -> dict[str, Reply]:
    lines = [line for _, line in manifest_lines(file, expected="expected the replies of a run")]
    expected = "expected those of this run (without the file they are made anew)"
    if lines[:1] != [_origin(model, max_new_tokens)]:
        raise UserError(f"{file}: replies of another decoder or of another --max-new-tokens; {expected}")
    replies = {line["said"]: Reply(line["text"], tuple(line["ids"])) for line in lines[1:]}
    missing = next((text for text in texts if text not in replies), None)
    if missing is not None:
        raise UserError(f"{file}: no reply to {missing[:40]!r}; {expected}")
    return replies
