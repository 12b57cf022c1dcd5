"""The global random generators of torch, Python and numpy: seed them, keep them in a checkpoint, shield them."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Generators:
    """States of all generators: `tensors` by name ("torch", "cuda/0"), `plain` as JSON takes it."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]


def seed_everything(seed: int) -> None:
    """Seed all generators. Call it before a model is built, so that a resumed run builds the same one."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def capture() -> Generators:
    """The present states."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda/{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # pyright: ignore[reportAssignmentType]
    numpy_state = [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)]
    return Generators(tensors, {"python": random.getstate(), "numpy": numpy_state})


def restore(states: Generators) -> None:
    """Put all generators back; those of GPUs that are not there are left out."""
    torch.set_rng_state(states.tensors["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda/{i}" in states.tensors:
            torch.cuda.set_rng_state(states.tensors[f"cuda/{i}"], i)
    version, internal, gauss = states.plain["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states.plain["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """What runs inside draws random numbers without moving the generators outside."""
    before = capture()
    try:
        yield
    finally:
        restore(before)
