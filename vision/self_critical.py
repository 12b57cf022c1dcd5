"""Self-critical training: captions that the model draws itself are made likelier the better they score.

Captions learnt word by word from references are judged as a whole, by CIDEr-D. So, after that training, several are
drawn for each picture, and each is raised or lowered by how far its score is above the mean of the others' (Rennie et
al. 2017, arXiv 1612.00563; the mean of the others as the baseline: Luo 2020, arXiv 2003.09971).

Legend: C captions drawn in all, T tokens, N tokens of all of them, D decoder width.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from multimodal.batch import Sample
from multimodal.loss import IGNORE, rows_loss
from multimodal.metrics import CiderD
from multimodal.model import MultimodalModel
from multimodal.turns import Turns
from vision.caption_data import CaptionImages
from vision.captioning import CAPTION_PROMPT

MAX_NEW_TOKENS = 32


@dataclass(frozen=True)
class Referenced:
    """A picture to be captioned, and its captions by people."""

    asked: Sample
    references: tuple[str, ...]


class ReferencedPictures:
    """Captioned pictures as samples that are asked for a caption. Arguments as of `CaptionSamples`."""

    def __init__(self, model: MultimodalModel, images: CaptionImages, *, prompt: str = CAPTION_PROMPT) -> None:
        self.images, self.prompt = images, prompt
        self.turns = Turns(model)

    def __len__(self) -> int:
        return len(self.images)

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
        reward: CIDEr-D with the document frequencies of the training captions.
        draws: captions of each picture, 2 or more.
    """

    def __init__(self, model: MultimodalModel, reward: CiderD, *, draws: int) -> None:
        super().__init__()
        if draws < 2:
            raise ValueError(f"{draws} captions of a picture; expected 2 or more, which are compared")
        self.model, self.reward, self.draws = model, reward, draws
        self._mean_reward = 0.0

    def train(self, mode: bool = True) -> Self:
        """Without dropout in any mode: what is raised must be what was drawn from."""
        super().train(mode)
        self.model.eval()
        return self

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Those of the model."""
        return self.model.parts()

    def log_values(self) -> dict[str, float]:
        """Mean reward of the newest batch, beside what the model says of itself."""
        return {"reward": self._mean_reward, **self.model.log_values()}

    def loss(self, batch: Sequence[Referenced]) -> tuple[Tensor, int]:
        """Minus the log-probability of each caption, times its advantage, summed; and the number of captions."""
        asked = [one.asked for one in batch]
        ids = self.model.generate_ids(
            asked, do_sample=True, top_k=0, num_return_sequences=self.draws, max_new_tokens=MAX_NEW_TOKENS
        )
        texts = self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        references = [one.references for one in batch for _ in range(self.draws)]
        reward_C = torch.tensor(self.reward(texts, references))
        self._mean_reward = reward_C.mean().item()
        advantage_C = advantages(reward_C, draws=self.draws).to(self.model.device)
        return self._weighted(asked, ids, advantage_C), len(ids)

    def _weighted(self, asked: Sequence[Sample], ids: Sequence[list[int]], weight_C: Tensor) -> Tensor:
        """Cross-entropy of captions, summed over their tokens, each times the weight of its caption."""
        drawn = iter(ids)
        samples = [
            replace(one, turns=tuple(replace(one.turns[0], answer=next(drawn)) for _ in range(self.draws)))
            for one in asked
        ]
        rows = self.model.collate(samples).to(self.model.device)
        hidden_CTD = self.model.decoder.hidden(
            rows.input_ids, rows.attention_mask, memory=self.model.memory(rows), inserted=self.model.inserted(rows)
        )
        learnt_CT = rows.targets != IGNORE
        weights_N = weight_C[:, None].expand_as(learnt_CT)[learnt_CT]
        return rows_loss(hidden_CTD[learnt_CT], rows.targets[learnt_CT], self.model.decoder.head, weights_N=weights_N)


def advantages(reward_C: Tensor, *, draws: int) -> Tensor:
    """How far each reward [C] is above the mean of the other `draws` - 1 of the same picture, which stand beside it."""
    of_each = reward_C.view(-1, draws)
    others = (of_each.sum(dim=1, keepdim=True) - of_each) / (draws - 1)
    return (of_each - others).flatten()
