"""Which arithmetic the forward pass uses, and on what device."""

from contextlib import AbstractContextManager
from typing import Literal

import torch

from multimodal.errors import UserError

Precision = Literal["fp32", "bf16"]


def resolve_device(name: str) -> torch.device:
    """The device of a flag: "auto" is a GPU if there is one. Raises `UserError` for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device is {name}: expected a device of this machine, such as cpu or cuda") from error
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware.

    A CPU without AVX512-BF16 or AMX (or Arm's BF16 extension, "bf16" to torch) emulates it, several times slower than
    fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def resolve_precision(name: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """ "auto" becomes bf16 where the hardware has it, else fp32."""
    if name == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return name


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a loss is computed; weights and gradients stay fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
