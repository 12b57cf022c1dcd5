"""Pairs of words that training never shows, and that the loss is therefore not to deny.

Who learns to say "red circle" learns not to say "red star" at that place, and where no star is ever red, that is never
corrected: star after red is denied whatever is seen, and so is red before star. New pairs are then misnamed although
either word is known (in zero-shot learning the bias towards seen classes: Chao et al. 2016, arXiv 1605.04253). So a
word that never stands beside this neighbour, although both are frequent, is left out of the softmax where a word of
its kind is to be said: whether it fits is left to what is seen. Words are of a kind if they have the same neighbours
(cosine of positive pointwise mutual information: Bullinaria and Levy 2007); grammar is learnt as ever.

Legend: B rows, T positions, N positions that carry loss, V vocabulary, K frequent tokens.
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
from multimodal.loss import IGNORE

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
        vocab_size: V.
        tokens_K: long, the frequent tokens; V is the begin of an answer.
        next_KK: bool, [a, b]: b never comes directly after a.
        answer_KK: bool, [a, b]: no answer to a prompt with a in it begins with b.
        kind_KK: bool, words that come after the same ones and before the same ones.
        answer_kind_KK: bool, words that begin answers to prompts with the same ones in them.
    """

    vocab_size: int
    tokens_K: Tensor
    next_KK: Tensor
    answer_KK: Tensor
    kind_KK: Tensor
    answer_kind_KK: Tensor

    def to(self, device: torch.device | str) -> "UnseenPairs":
        vocab_size, *tables = (getattr(self, field.name) for field in fields(self))
        return UnseenPairs(vocab_size, *(table.to(device) for table in tables))

    def excluded(self, input_ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """bool [N, V]: the tokens that are no alternative to the target of a position, never the target itself.

        Those of the target's kind that never come after the token before it, or before the one after it; for the first
        one of an answer those that no answer to a prompt with these tokens begins with.

        Args:
            input_ids_BT: what is read; ids beyond the vocabulary are placeholders.
            targets_BT: what is to be said next; -100 = nothing, as in `frozen_head_loss`. One answer a row.
        """
        said_BT, device = targets_BT != IGNORE, targets_BT.device
        other = self.vocab_size + 1  # behind the vocabulary and the begin of an answer
        places = torch.full((other + 1,), len(self.tokens_K), device=device)
        places[self.tokens_K] = torch.arange(len(self.tokens_K), device=device)

        def place(tokens: Tensor) -> Tensor:
            """Of a token among the frequent ones; K for all others."""
            return places[tokens.clamp(max=other)]

        next_KK, answer_KK, kind_KK, answer_kind_KK = (
            F.pad(table, (0, 1, 0, 1), value=False)  # one more, for all other tokens, of which nothing is known
            for table in (self.next_KK, self.answer_KK, self.kind_KK, self.answer_kind_KK)
        )
        before_BT = F.pad(targets_BT[:, :-1], (1, 0), value=IGNORE)
        before_BT = before_BT.masked_fill(before_BT == IGNORE, self.vocab_size)
        after_BT = F.pad(targets_BT[:, 1:], (0, 1), value=IGNORE)
        after_BT = after_BT.masked_fill(after_BT == IGNORE, other)
        place_N = place(targets_BT[said_BT])
        unseen_NK = next_KK[place(before_BT[said_BT])] | next_KK.T[place(after_BT[said_BT])]
        unseen_NK &= kind_KK[place_N]

        prompt_BT = said_BT.cumsum(1) - said_BT.long() == 0  # up to the token that foretells the first of the answer
        asked_BK = torch.zeros(len(targets_BT), len(next_KK), device=device)
        asked_BK.scatter_(
            1, place(input_ids_BT.masked_fill(~prompt_BT | (input_ids_BT >= self.vocab_size), other)), 1.0
        )
        row_N, first_N = said_BT.nonzero()[:, 0], prompt_BT[said_BT]
        never_BK = asked_BK @ answer_KK.float() > 0
        unseen_NK[first_N] |= never_BK[row_N[first_N]] & answer_kind_KK[place_N[first_N]]

        excluded_NV = torch.zeros(len(unseen_NK), self.vocab_size + 1, dtype=torch.bool, device=device)
        excluded_NV[:, self.tokens_K] = unseen_NK[:, :-1]
        return excluded_NV[:, :-1].scatter(1, targets_BT[said_BT][:, None], False)


def unseen_pairs(turns: Iterable[Turn], *, vocab_size: int) -> UnseenPairs:
    """The pairs that some turns of a data set, with answers, do not show."""
    after, begins, single = Counter[tuple[int, int]](), Counter[tuple[int, int]](), Counter[int]()
    for turn in turns:
        asked = {token for token in turn.prompt if token < vocab_size}
        single.update([*asked, vocab_size, *turn.answer])
        after.update(zip((vocab_size, *turn.answer[:-1]), turn.answer, strict=True))
        begins.update((token, first) for token in asked for first in turn.answer[:1])
    frequent = [token for token, _ in single.most_common(MOST_TOKENS)]
    place = {token: number for number, token in enumerate(frequent)}

    def table(counts: Counter[tuple[int, int]]) -> Tensor:
        counts_KK = torch.zeros(len(frequent), len(frequent))
        for (a, b), count in counts.items():
            if a in place and b in place:
                counts_KK[place[a], place[b]] = count
        return counts_KK

    next_KK, answer_KK = table(after), table(begins)
    kind_KK, answer_kind_KK = _alike(next_KK.T) & _alike(next_KK), _alike(answer_KK.T)
    return UnseenPairs(
        vocab_size,
        torch.tensor(frequent, dtype=torch.long),
        _missing(next_KK, kind_KK, kind_KK),
        _missing(answer_KK, kind_KK, answer_kind_KK),
        kind_KK,
        answer_kind_KK,
    )


def _alike(counts_KK: Tensor) -> Tensor:
    """bool: rows that go with the same columns."""
    chance_KK = counts_KK.sum(1, keepdim=True) * counts_KK.sum(0) / counts_KK.sum().clamp(min=1)
    information_KK = torch.where(counts_KK > chance_KK, counts_KK / chance_KK, 1.0).log()
    unit_KK = F.normalize(information_KK, dim=1)
    return unit_KK @ unit_KK.T >= ALIKE


def _missing(counts_KK: Tensor, row_kind_KK: Tensor, column_kind_KK: Tensor) -> Tensor:
    """bool: pairs that are not there, and would be if the words of two kinds went together by chance."""
    of_row_KK, to_column_KK = counts_KK @ column_kind_KK.float(), row_kind_KK.float() @ counts_KK
    expected_KK = of_row_KK * to_column_KK / (row_kind_KK.float() @ of_row_KK).clamp(min=1)
    return (counts_KK == 0) & (expected_KK >= EXPECTED)


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
