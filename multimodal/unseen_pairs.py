"""Pairs of words that training never shows, and that the loss is therefore not to deny.

Who learns to say "red circle" learns not to say "red star" at that place, and where no star is ever red, that is never
corrected: star after red is denied whatever is seen, and so is red before star. New pairs are then misnamed although
either word is known (in zero-shot learning the bias towards seen classes: Chao et al. 2016, arXiv 1605.04253). So a
word that never stands beside this neighbour, although both are frequent, is left out of the softmax where a word of
its kind is to be said: whether it fits is left to what is seen. Words are of a kind if they have the same neighbours
(cosine of positive pointwise mutual information: Bullinaria and Levy 2007); grammar is learnt as ever.

Legend: B rows, T positions, N positions that carry loss, V vocabulary, K frequent tokens, L = K + 2 rows of a table.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal.batch import Turn
from multimodal.loss import IGNORE, Excluded

MOST_TOKENS = 4096
"""Frequent tokens at most; pairs of others are too rare to be missed."""
EXPECTED = 5.0
"""How often a pair would be there by chance, at least, for its absence to say anything."""
ALIKE = 0.5
"""Cosine from which on two words are of a kind."""


@dataclass(frozen=True)
class UnseenPairs:
    """What never stands together in the answers of a data set, although that was to be expected.

    Attributes:
        tokens_K: long, the frequent tokens.
        place_V: long [V + 2], the row of each token in the tables, and of what is no token: the begin of an answer (row
            K) and, as all that is not frequent, a placeholder (row K + 1, of which nothing is known).
        next_LL: bool, [a, b]: b never comes directly after a.
        answer_LL: 1 at [a, b]: no answer to a prompt with a in it begins with b.
        kind_LL: bool, words that come after the same ones and before the same ones.
        answer_kind_LL: bool, words that begin answers to prompts with the same ones in them.
    """

    tokens_K: Tensor
    place_V: Tensor
    next_LL: Tensor
    answer_LL: Tensor
    kind_LL: Tensor
    answer_kind_LL: Tensor

    def to(self, device: torch.device | str) -> "UnseenPairs":
        return UnseenPairs(*(getattr(self, field.name).to(device) for field in fields(self)))

    def excluded(self, input_ids_BT: Tensor, targets_BT: Tensor) -> Excluded:
        """The tokens that are no alternative to the target of a position, never the target itself.

        Those of the target's kind that never come after the token before it, or before the one after it; for the first
        one of an answer those that no answer to a prompt with these tokens begins with.

        Args:
            input_ids_BT: what is read; ids beyond the vocabulary are placeholders.
            targets_BT: what is to be said next; -100 = nothing, as in `frozen_head_loss`. One answer a row.
        """
        begin, other = len(self.place_V) - 2, len(self.place_V) - 1
        said_BT = targets_BT != IGNORE
        before_BT = F.pad(targets_BT.masked_fill(~said_BT, begin)[:, :-1], (1, 0), value=begin)
        after_BT = F.pad(targets_BT.masked_fill(~said_BT, other)[:, 1:], (0, 1), value=other)
        before_N, after_N = self.place_V[before_BT[said_BT]], self.place_V[after_BT[said_BT]]
        place_N = self.place_V[targets_BT[said_BT]]
        unseen_NL = (self.next_LL[before_N] | self.next_LL.T[after_N]) & self.kind_LL[place_N]

        prompt_BT = said_BT.cumsum(1) - said_BT.long() == 0  # up to the token that foretells the first of the answer
        asked_BT = input_ids_BT.masked_fill(~prompt_BT | (input_ids_BT >= begin), other)
        asked_BL = self.answer_LL.new_zeros(len(targets_BT), len(self.answer_LL))
        asked_BL.scatter_(1, self.place_V[asked_BT], 1.0)
        row_N, first_N = said_BT.nonzero()[:, 0], prompt_BT[said_BT]
        never_BL = asked_BL @ self.answer_LL > 0
        unseen_NL[first_N] |= never_BL[row_N[first_N]] & self.answer_kind_LL[place_N[first_N]]
        unseen_NL = unseen_NL.scatter(1, place_N[:, None], False)
        return Excluded(self.tokens_K, unseen_NL[:, : len(self.tokens_K)])


def unseen_pairs(turns: Iterable[Turn], *, vocab_size: int) -> UnseenPairs:
    """The pairs that some turns of a data set, with answers, do not show."""
    begin = vocab_size
    after, begins, single = Counter[tuple[int, int]](), Counter[tuple[int, int]](), Counter[int]()
    for turn in turns:
        asked = {token for token in turn.prompt if token < vocab_size}
        single.update([*asked, *turn.answer])
        after.update(zip((begin, *turn.answer[:-1]), turn.answer, strict=True))
        begins.update((token, first) for token in asked for first in turn.answer[:1])
    frequent = torch.tensor([token for token, _ in single.most_common(MOST_TOKENS)], dtype=torch.long)
    place_V = torch.full((vocab_size + 2,), len(frequent) + 1)
    place_V[frequent], place_V[begin] = torch.arange(len(frequent)), len(frequent)

    def table(counts: Counter[tuple[int, int]]) -> Tensor:
        counts_LL = torch.zeros(len(frequent) + 2, len(frequent) + 2)
        for (a, b), count in counts.items():
            counts_LL[place_V[a], place_V[b]] += count
        counts_LL[-1], counts_LL[:, -1] = 0, 0
        return counts_LL

    next_LL, answer_LL = table(after), table(begins)
    kind_LL, answer_kind_LL = _alike(next_LL.T) & _alike(next_LL), _alike(answer_LL.T)
    return UnseenPairs(
        frequent,
        place_V,
        _missing(next_LL, kind_LL, kind_LL),
        _missing(answer_LL, kind_LL, answer_kind_LL).float(),
        kind_LL,
        answer_kind_LL,
    )


def _alike(counts_LL: Tensor) -> Tensor:
    """bool: rows that go with the same columns."""
    chance_LL = counts_LL.sum(1, keepdim=True) * counts_LL.sum(0) / counts_LL.sum().clamp(min=1)
    information_LL = torch.where(counts_LL > chance_LL, counts_LL / chance_LL, 1.0).log()
    unit_LL = F.normalize(information_LL, dim=1)
    return unit_LL @ unit_LL.T >= ALIKE


def _missing(counts_LL: Tensor, row_kind_LL: Tensor, column_kind_LL: Tensor) -> Tensor:
    """bool: pairs that are not there, and would be if the words of two kinds went together by chance."""
    of_row_LL, to_column_LL = counts_LL @ column_kind_LL.float(), row_kind_LL.float() @ counts_LL
    expected_LL = of_row_LL * to_column_LL / (row_kind_LL.float() @ of_row_LL).clamp(min=1)
    return (counts_LL == 0) & (expected_LL >= EXPECTED)


class TurnSource(Protocol):
    """A data set whose text can be had without its media."""

    def __len__(self) -> int: ...

    def text(self, index: int, rng: random.Random) -> Sequence[Turn]: ...


@contextmanager
def undenied(model: Any, dataset: TurnSource, *, samples: int, seed: int) -> Iterator[None]:
    """Within, the loss of a `MultimodalModel` denies no pair that is missing from so many samples, drawn by the seed;
    with 0 it denies all."""
    rng = random.Random(f"unseen pairs/{seed}")
    drawn = rng.sample(range(len(dataset)), min(samples, len(dataset)))
    if drawn:
        turns = (turn for index in drawn for turn in dataset.text(index, rng))
        model.unseen_pairs = unseen_pairs(turns, vocab_size=model.decoder.vocab_size).to(model.device)
    try:
        yield
    finally:
        model.unseen_pairs = None
