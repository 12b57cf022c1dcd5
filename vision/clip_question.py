"""A question about a clip with everything that is known of its answer, wherever it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase
from typing import Protocol


@dataclass(frozen=True)
class ClipQuestion:
    """A question with what is right, and what else might be said."""

    kind: str
    """Questions of a kind are scored together, too."""
    question: str
    answer: str
    reversed_answer: str | None = None
    """The right answer when the clip is played backwards, also where it is the same; None: not known, or the question
    makes no sense then."""
    options: tuple[str, ...] = ()
    """Different answers in the order in which they are offered, with `answer` and `reversed_answer` among them; empty:
    none are offered."""
    subject: int = 0
    """Of a rendered clip: number of the object that the question is about, or of the one that is its answer."""
    also_right: tuple[str, ...] = ()
    """Other answers that count as right."""

    @property
    def right(self) -> tuple[str, ...]:
        """Every answer that counts as right."""
        return (self.answer, *self.also_right)


def multiple_choice(question: ClipQuestion) -> ClipQuestion:
    """The same question with its options spelled out, "... (a) left (b) up", and letters for answers."""
    letters = dict(zip(question.options, ascii_lowercase, strict=False))
    spelled = " ".join(f"({letter}) {option}" for option, letter in letters.items())
    return replace(
        question,
        question=f"{question.question} {spelled}",
        answer=letters[question.answer],
        reversed_answer=None if question.reversed_answer is None else letters[question.reversed_answer],
        options=tuple(letters.values()),
        also_right=(),
    )


@dataclass(frozen=True)
class QuestionedClip:
    """A clip on disk and what is asked about it, or about a part of it."""

    clip: Path
    questions: tuple[ClipQuestion, ...]
    name: str
    between: tuple[float, float] | None = None
    """Start and end of the part in seconds; None: all of it."""


class ClipSet(Protocol):
    """Clips with questions by number: a list of them, or what makes them when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> QuestionedClip: ...


def flatten(clips: Sequence[QuestionedClip]) -> list[tuple[QuestionedClip, ClipQuestion]]:
    """Every question with its clip."""
    return [(clip, question) for clip in clips for question in clip.questions]
