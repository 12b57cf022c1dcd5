"""Next-token loss through a frozen output head, without ever storing logits (spec A4.5).

Ignored positions are dropped before the projection, the rest goes through the head in chunks, and because the head is
frozen only the gradient of the hidden states exists: it is computed along with the loss, and backward only scales it.

Legend: B batch, T positions, D decoder width, N positions that carry loss, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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


class HasHead(Protocol):
    """Anything with a frozen head, a `FrozenDecoder` for one."""

    @property
    def head(self) -> FrozenHead: ...


def frozen_head_loss(
    hidden_BTD: Tensor,
    targets_BT: Tensor,
    decoder_or_head: HasHead | Callable[[Tensor], Tensor],
    *,
    chunk: int = 256,
) -> tuple[Tensor, int]:
    """Summed cross-entropy of the targets and how many there are; divide by the count of the whole (accumulated) batch.

    Args:
        hidden_BTD: final normed hidden states.
        targets_BT: long, the token each position should predict (already shifted); -100 = no loss here.
        decoder_or_head: a `FrozenDecoder`, or a function from hidden states to logits whose weights are frozen.
        chunk: positions per projection; bounds the extra memory to a few times chunk * V floats.

    Returns:
        Scalar fp32 sum, and N. With N = 0 the sum is 0 and still part of the graph.
    """
    head: Any = decoder_or_head
    head = getattr(head, "head", head)
    keep_BT = targets_BT != IGNORE
    targets_N = targets_BT[keep_BT]
    hidden_ND = hidden_BTD[keep_BT]
    if not len(targets_N):
        return hidden_ND.float().sum(), 0
    return _FrozenHeadLoss.apply(hidden_ND, targets_N, head, chunk), len(targets_N)  # type: ignore[return-value]


class _FrozenHeadLoss(torch.autograd.Function):
    """Sum of cross-entropies; saves the gradient of the hidden states and nothing of vocabulary size."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, targets_N: Tensor, head: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
        wants_grad = ctx.needs_input_grad[0]
        total = hidden_ND.new_zeros((), dtype=torch.float32)
        grad_ND = torch.empty_like(hidden_ND) if wants_grad else None
        for start in range(0, len(hidden_ND), chunk):
            rows = slice(start, start + chunk)
            with torch.set_grad_enabled(wants_grad):
                x = hidden_ND[rows].detach().requires_grad_(wants_grad)
                loss = F.cross_entropy(head(x).float(), targets_N[rows], reduction="sum")
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
