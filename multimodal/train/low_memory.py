"""AdamW that asks for less memory, by torchao: running averages in 8 bits (Dettmers et al. 2021, arXiv 2110.02861), and
weights in bf16 that are rounded stochastically, so that steps too small for bf16 still count on average.

Bytes for a trained number, gradient included: 16 as usual, 10 with 8-bit averages, 8 with bf16 weights, 6 with both
(2 more where gradients are accumulated: they are always summed in fp32).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multimodal.errors import UserError
from multimodal.train.config import TrainConfig

Parts = dict[str, list[tuple[str, nn.Parameter]]]


def low_memory_adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """torchao's AdamW over such groups; its rates are tensors.

    Raises:
        UserError: torchao is not installed.
    """
    try:
        from torchao.optim import AdamW8bit, _AdamW
    except ImportError as error:
        flag = "optimizer adamw8bit" if config.optimizer == "adamw8bit" else "master-weights bf16"
        raise UserError(
            f"--{flag} needs the package torchao: expected it to be installed (pip install graft-multimodal[quantize])"
        ) from error
    base: Any = AdamW8bit if config.optimizer == "adamw8bit" else _AdamW
    on_gpu = all(p.device.type == "cuda" for group in groups for p in group["params"])
    return (base if on_gpu else _uncompiled(base))(groups, betas=config.betas, bf16_stochastic_round=True)


def _uncompiled(base: Any) -> Any:
    """torchao compiles the update of a weight, which asks for a C++ compiler on a CPU; this one does without."""

    class Uncompiled(base):
        def step(self, closure: Any = None) -> Any:
            with torch.compiler.set_stance("force_eager"):
                return super().step(closure)

    return Uncompiled


@contextmanager
def weights_in(dtype: torch.dtype, config: TrainConfig, parts: Parts) -> Iterator[None]:
    """Inside, trained weights are of this type (bf16 to train, fp32 where nothing casts them) and without gradients;
    then of the other again. Nothing is done unless the settings keep them in bf16. From bf16 to fp32 and back is exact.
    """
    if config.master_weights == "fp32":
        yield
        return
    _store(dtype, config, parts)
    try:
        yield
    finally:
        _store(torch.float32 if dtype is torch.bfloat16 else torch.bfloat16, config, parts)


def _store(dtype: torch.dtype, config: TrainConfig, parts: Parts) -> None:
    for _, parameter in (pair for named in parts.values() for pair in named):
        parameter.grad = None
        parameter.data = parameter.data.to(dtype)
        parameter.grad_dtype = torch.float32 if config.accumulate > 1 else dtype


def packed_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A parameter's optimizer state as plain tensors: 8-bit averages as their codes and scales."""
    packed: dict[str, Tensor] = {}
    for key, value in state.items():
        if hasattr(value, "codes"):
            packed |= {f"{key}.codes": value.codes, f"{key}.scale": value.scale}  # type: ignore[attr-defined]
        else:
            packed[key] = value
    return packed


def unpacked_state(packed: dict[str, Tensor], parameter: nn.Parameter) -> dict[str, Tensor]:
    """The inverse of `packed_state`."""
    state = {key: value for key, value in packed.items() if not key.endswith((".codes", ".scale"))}
    for key in (key.removesuffix(".codes") for key in packed if key.endswith(".codes")):
        from torchao.optim.subclass_8bit import OptimState8bit

        codes, scale = packed[f"{key}.codes"], packed[f"{key}.scale"]
        block = codes.numel() // scale.numel()
        # The average of squares alone has no sign.
        average = OptimState8bit.zeros(codes.shape, key == "exp_avg", block, parameter.device, parameter.dtype)
        average.codes.copy_(codes)
        average.scale.copy_(scale)
        state[key] = average
    return state
