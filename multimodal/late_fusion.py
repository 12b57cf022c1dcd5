"""Experts that agree on a sentence word by word: late fusion, at decoding time alone.

A sentence of a known form has a slot for each word. For every slot each expert (a modality with its prompt) gives the
slot's candidate words log-probabilities; the experts' are added with weights, which is a product of experts, and the
best word is taken, from left to right. Nothing is trained jointly: one frozen decoder, adapters that never met.

Legend: R rows (sentences), W candidate words of a slot.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from multimodal.answer_scores import answer_log_probs
from multimodal.batch import Sample, Turn
from multimodal.model import MultimodalModel

Slots = Mapping[str, Sequence[str]]
"""Candidate words by slot, in the order in which they are said."""
Media = Mapping[str, tuple[Any, ...]]
"""Prepared media of one row, as in `Sample`."""
Sentence = tuple[str, ...]
WEIGHTS = tuple(i / 20 for i in range(21))


class Expert(Protocol):
    """Whatever has an opinion on the words of a slot."""

    def __call__(self, slot: str, rows: Sequence[int], so_far: Sequence[Sentence]) -> Tensor:
        """Log-probabilities [R, W] of the slot's words, normalised over them.

        Args:
            rows: numbers of the media, one for each sentence.
            so_far: the words that were chosen for the slots before.
        """
        ...


class AnswerExpert:
    """Each slot has a question of its own, whose possible answers are its words. The words before do not matter.

    Args:
        media: of each row, taken no sooner than needed; all are scored at once.
        turn: (slot, word) -> the question with the word as its answer.
        batch_size: rows at once.
    """

    def __init__(
        self,
        model: MultimodalModel,
        media: Iterable[Media],
        slots: Slots,
        turn: Callable[[str, str], Turn],
        *,
        batch_size: int,
    ) -> None:
        turns = tuple(turn(slot, word) for slot, words in slots.items() for word in words)
        scores = answer_log_probs(model, (Sample(one, turns) for one in media), batch_size=batch_size)
        parts = torch.stack(scores).split([len(words) for words in slots.values()], dim=1)
        self._table = {slot: part_RW.log_softmax(1) for slot, part_RW in zip(slots, parts, strict=True)}

    def __call__(self, slot: str, rows: Sequence[int], so_far: Sequence[Sentence]) -> Tensor:
        return self._table[slot][list(rows)]


class TranscriptExpert:
    """One prompt is answered by the whole sentence: a word is scored at its place, given the words before it.

    Each beginning of an answer is scored once, however often it is asked for.

    Args:
        media: of each row.
        prompt: the turn to be answered, without an answer.
        batch_size: rows at once.
    """

    def __init__(
        self, model: MultimodalModel, media: Sequence[Media], slots: Slots, prompt: Turn, *, batch_size: int
    ) -> None:
        self.model, self.media, self.slots, self.prompt = model, media, slots, prompt
        self.batch_size = batch_size
        self._known: dict[tuple[int, Sentence], Tensor] = {}

    def __call__(self, slot: str, rows: Sequence[int], so_far: Sequence[Sentence]) -> Tensor:
        keys = list(zip(rows, so_far, strict=True))
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        samples = (Sample(self.media[row], self._turns(slot, before)) for row, before in new)
        scores = answer_log_probs(self.model, samples, batch_size=self.batch_size)
        # The words before count alike for every candidate, so that normalising takes them out again.
        self._known |= {key: one_W.log_softmax(0) for key, one_W in zip(new, scores, strict=True)}
        return torch.stack([self._known[key] for key in keys])

    def _turns(self, slot: str, before: Sentence) -> tuple[Turn, ...]:
        """The sentence up to each word of the slot, without an end of turn."""
        texts = (" ".join((*before, word)) for word in self.slots[slot])
        encode = self.model.tokenizer.encode
        return tuple(replace(self.prompt, answer=encode(text, add_special_tokens=False)) for text in texts)


@dataclass(frozen=True)
class Vote:
    """An expert's part in a decision: its weight, and the media that it looks at for each sentence."""

    expert: Expert
    weight: float
    rows: Sequence[int]


def decode(slots: Slots, votes: Sequence[Vote]) -> list[Sentence]:
    """The sentences [R] on which the votes agree, each slot's best word after the other. A weight of 0 is not asked."""
    said: list[Sentence] = [() for _ in votes[0].rows]
    for slot, words in slots.items():
        parts_RW = [vote.weight * vote.expert(slot, vote.rows, said) for vote in votes if vote.weight]
        best = torch.stack(parts_RW).sum(0).argmax(1).tolist()
        said = [(*before, words[int(i)]) for before, i in zip(said, best, strict=True)]
    return said


def choose_weight(
    score: Callable[[float], float], weights: Sequence[float] = WEIGHTS
) -> tuple[float, dict[float, float]]:
    """The weight with the highest score, of several the middle one; and the score of each weight."""
    scores = {weight: score(weight) for weight in weights}
    best = [weight for weight in weights if scores[weight] == max(scores.values())]
    return best[len(best) // 2], scores


def slot_accuracy(slots: Slots, said: Sequence[Sentence], truths: Sequence[Sentence]) -> dict[str, float]:
    """Share of right words in all ("words"), of sentences that are right in every word ("sentences"), and by slot."""
    right = [[a == b for a, b in zip(one, truth, strict=True)] for one, truth in zip(said, truths, strict=True)]
    by_slot = {slot: sum(column) / len(right) for slot, column in zip(slots, zip(*right, strict=True), strict=True)}
    return {
        "words": sum(by_slot.values()) / len(by_slot),
        "sentences": sum(map(all, right)) / len(right),
        **by_slot,
    }
