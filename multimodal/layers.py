"""Small layers that several modules share."""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.errors import UserError


class SwiGLU(nn.Module):
    """Feed-forward `down(silu(gate(x)) * up(x))` without biases (Llama 3 paper, section 3.2).

    Args:
        dim: width of input and output.
        hidden: width in between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]"""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class TanhGate(nn.Module):
    """`tanh(weight) * x` with one learned number that starts at 0, so that a new branch begins closed (spec A4.4)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.weight) * x


class Encoder(nn.Module):
    """What turns media into features. While it is frozen it stays in eval mode: it is used as it is, without dropout,
    and what a cache kept of it is what it would compute.
    """

    def train(self, mode: bool = True) -> Self:
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def late_parameters(self) -> list[nn.Parameter]:
        """Those that join after the encoder's own pre-training: here none."""
        return []

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """All parameters, named as those of `encoder`: the part of that name, and the late ones, the part `late`."""
        late = {id(parameter) for parameter in self.late_parameters()}
        parts: dict[str, list[tuple[str, nn.Parameter]]] = {"encoder": [], "late": []}
        for name, parameter in self.named_parameters(prefix="encoder"):
            parts["late" if id(parameter) in late else "encoder"].append((name, parameter))
        return parts


def expect_taps(taps: Sequence[int], layers: int, *, what: str) -> tuple[int, ...]:
    """Layers whose outputs are tapped, counted from 1.

    Raises:
        UserError: not rising, or beyond the stack of `what`.
    """
    if list(taps) != sorted({*taps} & {*range(1, layers + 1)}):
        raise UserError(f"{what}: taps {tuple(taps)}, expected rising layer numbers from 1 to {layers}")
    return tuple(taps)
