"""Turns about media of one kind: the same prompt for many samples is encoded once."""

from collections.abc import Sequence
from typing import Any

from multimodal.batch import Turn
from multimodal.messages import Message, Prompt, encode_prompt
from multimodal.model import MultimodalModel


class Turns:
    """Makes turns about one or several media of a kind.

    Args:
        kind: "image", "audio" ...
        text_first: whether the text stands before the media.
    """

    def __init__(self, model: MultimodalModel, *, kind: str = "image", text_first: bool = False) -> None:
        self.model, self.kind, self.text_first = model, kind, text_first
        self._prompts: dict[tuple[str, int], Prompt] = {}

    def __call__(self, text: str, answer: str | None, *, media: int = 1) -> Turn:
        messages = self._messages(text, media)
        key = (text, media)
        if key not in self._prompts:
            if len(self._prompts) > 10_000:
                self._prompts.clear()
            self._prompts[key] = encode_prompt(messages, self.model.vocabulary)
        return self.model.turn(messages, self._prompts[key], answer)

    def _messages(self, text: str, media: int) -> Sequence[Message]:
        shown: list[dict[str, Any]] = [{"type": self.kind, self.kind: None} for _ in range(media)]
        said = {"type": "text", "text": text}
        return [{"role": "user", "content": [said, *shown] if self.text_first else [*shown, said]}]
