"""How likely given answers are to a model: log-probabilities by which candidates can be compared.

Legend: B rows (one for each turn), N tokens of all answers, D decoder width, V vocabulary.
"""

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F

from multimodal.batch import Sample
from multimodal.loss import IGNORE
from multimodal.model import MultimodalModel

CHUNK = 256
"""Tokens whose logits are there at once."""


def answer_log_probs(model: MultimodalModel, samples: Iterable[Sample], *, batch_size: int) -> list[torch.Tensor]:
    """log p(answer | media, prompt) of every turn: the sum over the answer's tokens, in nats.

    Candidate answers about the same media are turns of one sample, which encodes them once.

    Args:
        samples: taken no sooner than they are needed.
        batch_size: samples at once.

    Returns:
        fp32 [turns] for each sample, in order, on the CPU.

    Raises:
        ValueError: a turn without an answer: nothing is certain, and would win against everything.
    """
    found: list[torch.Tensor] = []
    waiting = iter(samples)
    while part := list(islice(waiting, batch_size)):
        if not all(turn.answer for sample in part for turn in sample.turns):
            raise ValueError("a turn without an answer; expected one token or more to score")
        found += _batch_log_probs(model, part).split([len(sample.turns) for sample in part])
    return found


@torch.no_grad()
def _batch_log_probs(model: MultimodalModel, samples: list[Sample]) -> torch.Tensor:
    """One sum [B] for each turn of the samples."""
    batch = model.collate(samples).to(model.device)
    hidden_BTD = model.decoder.hidden(
        batch.input_ids, batch.attention_mask, memory=model.memory(batch), inserted=model.inserted(batch)
    )
    counted_BT = batch.targets != IGNORE
    chunks = zip(hidden_BTD[counted_BT].split(CHUNK), batch.targets[counted_BT].split(CHUNK), strict=True)
    losses = [F.cross_entropy(model.decoder.head(h_ND).float(), t_N, reduction="none") for h_ND, t_N in chunks]
    row_N = counted_BT.nonzero()[:, 0]
    sums_B = torch.zeros(len(counted_BT), device=model.device).index_add_(0, row_N, -torch.cat(losses))
    return sums_B.cpu()
