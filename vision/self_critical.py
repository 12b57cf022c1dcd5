"""Self-critical training: captions that the model draws itself are made likelier the better they score.

Captions learnt word by word from references are judged as a whole, by CIDEr-D. So, after that training, several are
drawn for each picture, and each is raised or lowered by how far its score is above the mean of the others' (Rennie et
al. 2017, arXiv 1612.00563; the mean of the others as the baseline: Luo 2020, arXiv 2003.09971).

Legend: C captions drawn in all, T tokens, N tokens of all of them, D decoder width.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from multimodal.batch import Sample
from multimodal.loss import IGNORE, rows_loss
from multimodal.metrics import CiderD
from multimodal.model import MultimodalModel
from multimodal.train.compiled import uncompiled
from vision.captioning import CaptionSamples

MAX_NEW_TOKENS = 32
DRAW: dict[str, Any] = {
    "do_sample": True,
    "max_new_tokens": MAX_NEW_TOKENS,
    # What is drawn from must be what is raised: nothing of what the decoder's own settings may ask for.
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
OTHERS = 3
"""Pictures whose captions may be held against one."""
END = "endofcaption"
"""A word after every caption that came to its end. Without it fragments such as "a dog on a" score best (Rennie et al.,
appendix E)."""


@dataclass(frozen=True)
class Referenced:
    """A picture to be captioned, and its captions by people."""

    asked: Sample
    references: tuple[str, ...]


class ReferencedPictures(CaptionSamples):
    """Captioned pictures as samples that are asked for a caption."""

    def sample(self, index: int, rng: random.Random) -> Referenced | None:
        found = self.images.sample(index, rng)
        if found is None:
            return None
        turn = self.turns(found.question or self.prompt, None, media=len(found.images))
        return Referenced(Sample({"image": found.images}, (turn,)), found.captions)


class SelfCriticalTask(nn.Module):
    """The model under the self-critical loss; a `Task` of the training engine.

    Args:
        model: with an adapter that captions already: a random one draws nothing that is worth rewarding.
        captions: those of each training picture, whose document frequencies CIDEr-D takes.
        draws: captions of each picture, 2 or more.
        contrast: how much of the mean score with the captions of other pictures of the batch is taken off.

    Raises:
        UserError: captions of fewer than two pictures.
    """

    def __init__(
        self, model: MultimodalModel, captions: Sequence[Sequence[str]], *, draws: int, contrast: float = 0.0
    ) -> None:
        super().__init__()
        if draws < 2:
            raise ValueError(f"{draws} captions of a picture; expected 2 or more, which are compared")
        self.model, self.draws, self.contrast = model, draws, contrast
        self.score = CiderD([_ended(several) for several in captions])
        self._scores: dict[str, float] = {}

    def train(self, mode: bool = True) -> Self:
        """Without dropout in any mode: what is raised must be what was drawn from."""
        super().train(mode)
        self.model.eval()
        return self

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Those of the model."""
        return self.model.parts()

    def log_values(self) -> dict[str, float]:
        """Mean scores of the newest (micro-)batch, with its own captions and, if they count, those of other pictures;
        beside what the model says of itself."""
        return {**self._scores, **self.model.log_values()}

    def loss(self, batch: Sequence[Referenced]) -> tuple[Tensor, int]:
        """Minus the log-probability of each caption, times its advantage, summed; and the number of captions."""
        asked = [one.asked for one in batch]
        with uncompiled():
            ids = self.model.generate_ids(asked, num_return_sequences=self.draws, **DRAW)
        texts = self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        ends = self.model.ends
        said = [f"{t} {END}" if one[-1] in ends else t for t, one in zip(texts, ids, strict=True)]
        reward_C = self._reward(said, [_ended(one.references) for one in batch])
        advantage_C = advantages(reward_C, draws=self.draws).to(self.model.device)
        return self._weighted(asked, ids, advantage_C), len(ids)

    def _reward(self, said: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
        """The score [C] of each caption, less what it scores with the captions of the pictures that follow its own."""
        pictures = min(len(references), 1 + OTHERS) if self.contrast else 1
        shown = [[*references[ahead:], *references[:ahead]] for ahead in range(pictures)]
        compared = [those for some in shown for those in some for _ in range(self.draws)]
        scores = torch.tensor(self.score([*said] * pictures, compared)).view(pictures, -1)
        own_C = scores[0]
        self._scores = {"reward": own_C.mean().item()}
        if pictures == 1:
            return own_C
        others_C = scores[1:].mean(dim=0)
        self._scores["reward_of_others"] = others_C.mean().item()
        return own_C - self.contrast * others_C

    def _weighted(self, asked: Sequence[Sample], ids: Sequence[list[int]], weight_C: Tensor) -> Tensor:
        """Cross-entropy of captions, summed over their tokens, each times the weight of its caption."""
        drawn = iter(ids)
        samples = [
            replace(one, turns=tuple(replace(one.turns[0], answer=next(drawn)) for _ in range(self.draws)))
            for one in asked
        ]
        rows = self.model.collate(samples).to(self.model.device)
        # Nobody sees the padding, which is on the right: no mask.
        hidden_CTD = self.model.decoder.hidden(rows.input_ids, memory=self.model.memory(rows))
        learnt_CT = rows.targets != IGNORE
        weights_N = weight_C.repeat_interleave(learnt_CT.sum(dim=1))
        return rows_loss(hidden_CTD[learnt_CT], rows.targets[learnt_CT], self.model.decoder.head, weights_N=weights_N)


def _ended(captions: Sequence[str]) -> list[str]:
    return [f"{caption} {END}" for caption in captions]


def advantages(reward_C: Tensor, *, draws: int) -> Tensor:
    """How far each reward [C] is above the mean of the other `draws` - 1 of the same picture, which stand beside it."""
    of_each = reward_C.view(-1, draws)
    return ((of_each - of_each.mean(dim=1, keepdim=True)) * draws / (draws - 1)).flatten()
