"""Turns about media that are prepared already: a question, an answer, and how many media stand before the question."""

from multimodal.batch import Turn
from multimodal.messages import Message, Prompt, encode_prompt
from multimodal.model import MultimodalModel


class Turns:
    """Makes turns about one or several media of a kind; encodes each prompt once, since most are the same."""

    def __init__(self, model: MultimodalModel, kind: str = "image") -> None:
        self.model, self.kind = model, kind
        self._prompts: dict[tuple[str, int], Prompt] = {}

    def __call__(self, text: str, answer: str | None, *, media: int = 1) -> Turn:
        messages = self._messages(text, media)
        key = (text, media)
        if key not in self._prompts:
            if len(self._prompts) > 10_000:
                self._prompts.clear()
            self._prompts[key] = encode_prompt(messages, self.model.vocabulary)
        return self.model.turn(messages, self._prompts[key], answer)

    def _messages(self, text: str, media: int) -> list[Message]:
        shown = [{"type": self.kind, self.kind: None} for _ in range(media)]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]
