"""Next-token loss through a frozen output head, without ever storing logits (spec A4.5).

Ignored positions are dropped before the projection, the rest goes through the head in chunks, and because the head is
frozen only the gradient of the hidden states exists: it is computed along with the loss, and backward only scales it.

Legend: B batch, T positions, D decoder width, N positions that carry loss, n those of a chunk, R some rows of the
batch, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

IGNORE = -100


class FrozenHead:
    """Hidden states -> logits exactly as `lm` makes them, with the scaling and soft-capping of its family.

    Args:
        lm: a causal decoder of transformers.
    """

    def __init__(self, lm: Any) -> None:
        config = lm.config.get_text_config()
        self.projection: nn.Module = lm.get_output_embeddings()
        scale = getattr(config, "logit_scale", None)  # Cohere
        multiplier = getattr(config, "lm_head_multiplier", None)  # Falcon-H1
        self.factors = [float(factor) for factor in (scale, multiplier) if factor is not None]
        self.divisor: float | None = getattr(config, "logits_scaling", None)  # Granite
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)  # Gemma

    def __call__(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]"""
        logits = self.projection(hidden)
        for factor in self.factors:
            logits = logits * factor
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


@dataclass(frozen=True)
class Excluded:
    """Tokens that are left out of the softmax of positions with a target; never the target itself.

    Attributes:
        tokens_K: long, those that may be.
        mask_NK: bool, which of them are, position by position.
    """

    tokens_K: Tensor
    mask_NK: Tensor

    def out_of(self, logits_nV: Tensor, rows: slice) -> Tensor:
        """The logits of some positions with -inf for what is left out there."""
        mask_nV = torch.zeros_like(logits_nV, dtype=torch.bool).index_copy(1, self.tokens_K, self.mask_NK[rows])
        return logits_nV.masked_fill(mask_nV, -torch.inf)


class HasHead(Protocol):
    """Anything with a frozen head, a `FrozenDecoder` for one."""

    @property
    def head(self) -> FrozenHead: ...


@dataclass(frozen=True)
class Teacher:
    """What the same decoder makes of the same answers after other prompts, for the positions that are to say likewise.

    Attributes:
        hidden_ND: its final normed hidden states, without gradient.
        row_BT: long, the row of `hidden_ND` that each position learns from; -1 = none.
    """

    hidden_ND: Tensor
    row_BT: Tensor

    def rows(self, rows_R: Tensor, length: int) -> "Teacher":
        """Of some of the rows (long [R]), with the first `length` columns."""
        return replace(self, row_BT=self.row_BT[rows_R, :length])


def frozen_head_loss(
    hidden_BTD: Tensor,
    targets_BT: Tensor,
    decoder_or_head: HasHead | Callable[[Tensor], Tensor],
    *,
    teacher: Teacher | None = None,
    excluded: Excluded | None = None,
    chunk: int = 256,
) -> tuple[Tensor, int]:
    """Summed cross-entropy of the targets and how many there are; divide by the count of the whole (accumulated) batch.

    A position with a teacher has the KL divergence KL(teacher || its own) of the two next-token distributions instead.

    Args:
        hidden_BTD: final normed hidden states.
        targets_BT: long, the token each position should predict (already shifted); -100 = no loss here.
        decoder_or_head: a `FrozenDecoder`, or a function from hidden states to logits whose weights are frozen.
        teacher: for positions that have a target too; None = there are none.
        excluded: what no position without a teacher is told apart from; None = nothing.
        chunk: positions per projection; bounds the extra memory to a few times chunk * V floats.

    Returns:
        Scalar fp32 sum, and N. With N = 0 the sum is 0 and still part of the graph.
    """
    head: Any = decoder_or_head
    head = getattr(head, "head", head)
    if teacher is not None:
        taught_BT = teacher.row_BT >= 0
        wanted_ND = teacher.hidden_ND[teacher.row_BT[taught_BT]]
        divergence = _summed(hidden_BTD[taught_BT], head, _divergence(wanted_ND, head), chunk)
        if excluded is not None:
            excluded = replace(excluded, mask_NK=excluded.mask_NK[~taught_BT[targets_BT != IGNORE]])
        untaught_BT = targets_BT.masked_fill(taught_BT, IGNORE)
        told, count = frozen_head_loss(hidden_BTD, untaught_BT, head, excluded=excluded, chunk=chunk)
        return told + divergence, count + len(wanted_ND)
    keep_BT = targets_BT != IGNORE
    targets_N = targets_BT[keep_BT]
    total = rows_loss(hidden_BTD[keep_BT], targets_N, head, excluded=excluded, chunk=chunk)
    return total, len(targets_N)


def rows_loss(
    hidden_ND: Tensor,
    targets_N: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    weights_N: Tensor | None = None,
    excluded: Excluded | None = None,
    chunk: int = 256,
) -> Tensor:
    """Summed cross-entropy of positions that all carry loss, each times its weight, which may be negative; the other
    arguments as for `frozen_head_loss`.
    """
    return _summed(hidden_ND, head, _cross_entropy(targets_N, weights_N, excluded), chunk)


ChunkLoss = Callable[[Tensor, slice], Tensor]
"""fp32 logits [n, V] of a chunk, and which of the N positions they are of -> summed loss."""


def _cross_entropy(targets_N: Tensor, weights_N: Tensor | None, excluded: Excluded | None) -> ChunkLoss:
    def loss(logits_nV: Tensor, rows: slice) -> Tensor:
        if excluded is not None:
            logits_nV = excluded.out_of(logits_nV, rows)
        if weights_N is None:
            return F.cross_entropy(logits_nV, targets_N[rows], reduction="sum")
        return (weights_N[rows] * F.cross_entropy(logits_nV, targets_N[rows], reduction="none")).sum()

    return loss


def _divergence(teacher_ND: Tensor, head: Callable[[Tensor], Tensor]) -> ChunkLoss:
    def loss(logits_nV: Tensor, rows: slice) -> Tensor:
        with torch.no_grad():
            wanted_nV = head(teacher_ND[rows]).float().log_softmax(-1)
        return F.kl_div(logits_nV.log_softmax(-1), wanted_nV, log_target=True, reduction="sum")

    return loss


def _summed(hidden_ND: Tensor, head: Callable[[Tensor], Tensor], loss: ChunkLoss, chunk: int) -> Tensor:
    if not len(hidden_ND):
        return hidden_ND.float().sum()
    return _FrozenHeadLoss.apply(hidden_ND, head, loss, chunk)  # type: ignore[return-value]


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class _FrozenHeadLoss(torch.autograd.Function):
    """Sum of a loss over positions; saves the gradient of the hidden states and nothing of vocabulary size."""

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, head: Callable[[Tensor], Tensor], chunk_loss: ChunkLoss, chunk: int
    ) -> Tensor:
        wants_grad = ctx.needs_input_grad[0]
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        grad_ND = torch.empty_like(hidden_ND) if wants_grad else None
        for start in range(0, len(hidden_ND), chunk):
            rows = slice(start, start + chunk)
            # Used up at once: of no use to hooks that move what waits for backward elsewhere.
            with torch.set_grad_enabled(wants_grad), saved_tensors_hooks(_as_it_is, _as_it_is):
                x = hidden_ND[rows].detach().requires_grad_(wants_grad)
                loss = chunk_loss(head(x).float(), rows)
            if grad_ND is not None:
                grad_ND[rows] = torch.autograd.grad(loss, x)[0]
            total += loss.detach()
        if grad_ND is not None:
            ctx.save_for_backward(grad_ND)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_ND,) = ctx.saved_tensors
        return grad_ND * grad_outputs[0].to(grad_ND.dtype), None, None, None
