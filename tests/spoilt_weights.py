"""Checkpoints whose weights do not fit their config.json, and what is said of them."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

FAULTS: dict[str, tuple[Callable[[Tensors, str, int], object], str]] = {
    "missing": (lambda tensors, name, _: tensors.pop(name), r"missing [\w.]*layers?\.{last}\.[\w.]+$"),
    "misshapen": (
        lambda tensors, name, _: tensors.update({name: torch.zeros(3, 5)}),
        r"[\w.]+ \[3, 5\] for \[\d+, \d+\]$",
    ),
    "of a layer that the config does not count": (
        lambda tensors, name, last: tensors.update({name.replace(f".{last}.", f".{last + 1}."): tensors[name].clone()}),
        r"unknown [\w.]*layers?\.{next}\.[\w.]+$",
    ),
}


def spoil(folder: Path, fault: str, *, last: int, skip: str) -> str:
    """Spoil a matrix of layer `last`, of what is not called `skip`; what the message then ends with, as a pattern."""
    tensors = load_file(folder / "model.safetensors")
    of_layer = [n for n in tensors if f".{last}." in n and "layer" in n and skip not in n and tensors[n].ndim == 2]
    change, said = FAULTS[fault]
    change(tensors, of_layer[0], last)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return said.replace("{last}", str(last)).replace("{next}", str(last + 1))
