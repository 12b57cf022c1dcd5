"""Frozen weights in the arithmetic of autocast, cast once and not in every call.

Autocast keeps its casts of trained weights alone: those of a frozen decoder in fp32 it makes anew in every call of
every layer, which for a single token costs as much as the products themselves. The results are the same to the bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class CastOnce:
    """The linear layers of a frozen module, with a second copy of their weights, made when it is first needed.

    Args:
        module: frozen; layers whose weights are not plain fp32 (bf16, quantised) are left alone.
    """

    def __init__(self, module: nn.Module) -> None:
        self.linears = [found for found in module.modules() if type(found) is nn.Linear]
        self._copies: dict[nn.Linear, tuple[Tensor, int, nn.Parameter]] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside, under autocast, the layers hold weights that need no cast. What is saved for backward is these."""
        held: list[tuple[nn.Linear, Tensor]] = []
        try:
            for linear in self.linears:
                weight = linear.weight
                kind = weight.device.type
                if weight.dtype == torch.float32 and not weight.is_meta and torch.is_autocast_enabled(kind):
                    held.append((linear, weight))
                    linear._parameters["weight"] = self._cast(linear, torch.get_autocast_dtype(kind))
            yield
        finally:
            for linear, weight in held:
                linear._parameters["weight"] = weight  # pyright: ignore[reportArgumentType]

    def _cast(self, linear: nn.Linear, dtype: torch.dtype) -> nn.Parameter:
        weight = linear.weight
        found = self._copies.get(linear)
        if found is not None:
            source, version, copy = found
            # A move to another device changes a parameter in place.
            same = source is weight and version == weight._version
            if same and copy.dtype == dtype and copy.device == weight.device:
                return copy
        copy = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        self._copies[linear] = (weight, weight._version, copy)
        return copy
