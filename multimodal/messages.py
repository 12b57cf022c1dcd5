"""From chat messages to token ids: where the media stand, what the decoder reads, and what the loss counts.

A message is `{"role": ..., "content": ...}` as in `transformers`; its content is a string or a list of parts
`{"type": "text", "text": ...}`, `{"type": "image", "image": path, picture or array}`, likewise for other media. Each
medium becomes one placeholder token, whose id lies behind the decoder's own vocabulary (spec A4.2).
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from multimodal.errors import UserError
from multimodal.tokenizer import AnyTokenizer

Message = Mapping[str, Any]
MEDIA_KINDS = ("image", "video", "audio")


def placeholder(kind: str) -> str:
    return f"<|{kind}|>"


@dataclass(frozen=True)
class Medium:
    """One picture, clip or recording as the user gave it: a path or an object in memory."""

    kind: str
    source: Any


@dataclass(frozen=True)
class Prompt:
    """Token ids with placeholders in them, and the media that stand at the placeholders, in order."""

    ids: list[int]
    media: tuple[Medium, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """The decoder's tokenizer together with the ids of the placeholder tokens behind its vocabulary."""

    tokenizer: AnyTokenizer
    placeholder_ids: Mapping[str, int]

    def encode(self, text: str) -> list[int]:
        """Tokenise text in which placeholders may stand; nothing is added at either end."""
        ids: list[int] = []
        for part in _pieces(text, self.placeholder_ids):
            if part["type"] == "text":
                ids += self.tokenizer.encode(part["text"], add_special_tokens=False)
            else:
                ids.append(self.placeholder_ids[part["type"]])
        return ids


def _pieces(text: str, kinds: Iterable[str]) -> list[dict[str, str]]:
    """A text in which placeholders of some kinds may stand, as parts: texts that are not empty, and media."""
    names = {placeholder(kind): kind for kind in kinds}
    any_name = "|".join(map(re.escape, names)) or "(?!)"  # without kinds: what is found nowhere
    pieces = re.split(f"({any_name})", text)
    return [{"type": names[p]} if p in names else {"type": "text", "text": p} for p in pieces if p]


def _parts(message: Message) -> Sequence[Mapping[str, Any]]:
    """The parts of a message, each of a known type and with its value; a string is one text."""
    content = message.get("content")
    if "role" not in message or not isinstance(content, str | list | tuple):
        raise UserError(f"message {str(message)[:80]}: expected a role, and as content a text or a list of parts")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not (kind in MEDIA_KINDS and kind in part) and not (kind == "text" and isinstance(part.get("text"), str)):
            raise UserError(f"message part {str(part)[:80]}: expected type text, image, video or audio with its value")
    return parts


def _flatten(messages: Sequence[Message]) -> tuple[list[Message], list[Medium]]:
    """Messages whose content is parts, texts and media without their values, and the media in order.

    A text that already spells the placeholders of all media says itself where they stand.
    """
    media: list[Medium] = []
    spelt = {kind: 0 for kind in MEDIA_KINDS}
    for part in (part for message in messages for part in _parts(message)):
        if part["type"] == "text":
            for kind in MEDIA_KINDS:
                spelt[kind] += part["text"].count(placeholder(kind))
        else:
            media.append(Medium(part["type"], part[part["type"]]))
    for kind, count in spelt.items():
        given = sum(m.kind == kind for m in media)
        if count and count != given:
            raise UserError(f"the text has {count} {placeholder(kind)} placeholders, but {given} were given")
    flat: list[Message] = []
    for message in messages:
        parts = []
        for part in _parts(message):
            if part["type"] == "text":
                parts += _pieces(part["text"], MEDIA_KINDS)
            elif not spelt[part["type"]]:
                parts.append({"type": part["type"]})
        flat.append({"role": message["role"], "content": parts})
    return flat, media


def _kinds_in_template(tokenizer: AnyTokenizer) -> set[str]:
    """The media for which a chat template writes Graft's placeholders itself, where a message has them as parts.

    Llama 3.2 Vision's does, and says other things around messages with pictures than around those without.
    """
    found = set()
    for kind in (kind for kind in MEDIA_KINDS if placeholder(kind) in str(tokenizer.chat_template)):
        probe = [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": "."}]}]
        try:
            if placeholder(kind) in str(tokenizer.apply_chat_template(probe, tokenize=False)):
                found.add(kind)
        except (TemplateError, TypeError):  # it expects texts alone
            continue
    return found


def _content(parts: Sequence[Mapping[str, Any]], as_parts: Collection[str]) -> str | list[Mapping[str, Any]]:
    """Parts of a message as one text with placeholders; as a list, if media of the kinds `as_parts` are among them."""
    texts = [p if p["type"] in ("text", *as_parts) else {"type": "text", "text": placeholder(p["type"])} for p in parts]
    if any(part["type"] in as_parts for part in texts):
        return texts
    return "".join(part["text"] for part in texts)


def _render(tokenizer: AnyTokenizer, messages: Sequence[Message]) -> tuple[str, str]:
    """The prompt text before the answer, and what follows an answer (its end of turn).

    Raises:
        UserError: the chat template refuses the messages, as some do a system message.
    """
    if not tokenizer.chat_template:
        begin = tokenizer.bos_token or ""
        return begin + "".join(f"{_content(m['content'], ())}\n" for m in messages), tokenizer.eos_token or ""
    marker = "\x00answer\x00"
    as_parts = _kinds_in_template(tokenizer)
    asked = [{"role": m["role"], "content": _content(m["content"], as_parts)} for m in messages]
    answered = [*asked, {"role": "assistant", "content": marker}]
    try:
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(answered, tokenize=False)
    except TemplateError as error:
        raise UserError(f"the decoder's chat template refuses the messages: {error}") from None
    assert isinstance(prompt, str) and isinstance(whole, str)
    end = whole.rpartition(marker)[2].strip() if marker in whole else ""
    return prompt, end or tokenizer.eos_token or ""


def encode_prompt(messages: Sequence[Message], vocabulary: Vocabulary) -> Prompt:
    """Messages as the decoder reads them, ready for its answer.

    Raises:
        UserError: a part of unknown type, a medium that the model has no adapter for, placeholders spelt in the text
            whose number is not that of the media, or messages that the chat template refuses.
    """
    flat, media = _flatten(messages)
    for medium in media:
        if medium.kind not in vocabulary.placeholder_ids:
            raise UserError(f"the prompt has {medium.kind}, but the model has no {medium.kind} adapter")
    ids = vocabulary.encode(_render(vocabulary.tokenizer, flat)[0])
    return Prompt(ids, tuple(media))


def encode_answer(messages: Sequence[Message], answer: str, vocabulary: Vocabulary) -> list[int]:
    """The answer to `messages` with its end of turn: the tokens that the loss counts (spec A4.5)."""
    end = _render(vocabulary.tokenizer, _flatten(messages)[0])[1]
    answer_ids = vocabulary.tokenizer.encode(answer, add_special_tokens=False)
    return answer_ids + vocabulary.tokenizer.encode(end, add_special_tokens=False)
