"""Turns about media of one kind: the same prompt for many samples is encoded once."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

from multimodal.batch import Turn, misread
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

    def learnt(
        self, asked: Iterable[tuple[str, str]], rng: random.Random, *, media: int = 1, share_misread: float = 0.0
    ) -> tuple[Turn, ...]:
        """Turns to learn from, of texts with their answers; see `multimodal.batch.misread`."""
        tokens = self.model.decoder.vocab_size
        made = [self(text, answer, media=media) for text, answer in asked]
        return tuple(misread(turn, share=share_misread, tokens=tokens, rng=rng) for turn in made)

    def _messages(self, text: str, media: int) -> Sequence[Message]:
        shown: list[dict[str, Any]] = [{"type": self.kind, self.kind: None} for _ in range(media)]
        said = {"type": "text", "text": text}
        return [{"role": "user", "content": [said, *shown] if self.text_first else [*shown, said]}]
