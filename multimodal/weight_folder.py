"""Weights as `transformers` keeps them: a safetensors file, or shards with an index, one of them in memory at a time.

Pickled weights are refused: reading them may run code.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from multimodal.errors import UserError, up_to_ten
from multimodal.safe_weights import only_pickle, open_safetensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 4 * 2**30

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor in a folder: its shard, and its shape as the shard's header has it."""

    file: Path
    shape: Shape


@dataclass(frozen=True)
class WeightFolder:
    """The tensors of a folder by name."""

    stored: Mapping[str, Stored]

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: tensor.shape for name, tensor in self.stored.items()}

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, of which nothing is read but a scalar."""
        shard, shape = _open(self.stored[name].file), self.stored[name].shape
        return (shard.get_slice(name)[:0] if shape else shard.get_tensor(name)).dtype

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name, shard by shard."""
        for file in dict.fromkeys(tensor.file for tensor in self.stored.values()):
            shard = _open(file)
            for name in (name for name, tensor in self.stored.items() if tensor.file == file):
                yield name, shard.get_tensor(name)


def open_weights(folder: Path) -> WeightFolder:
    """The headers of all shards of a folder.

    Raises:
        UserError: no safetensors in it, a shard is missing or truncated, or a tensor lies in two.
    """
    stored: dict[str, Stored] = {}
    for file in _shards(folder):
        shard = _open(file)
        for name in shard.keys():  # noqa: SIM118
            if name in stored:
                raise UserError(f"{file}: {name} lies in {stored[name].file.name} too; expected each tensor once")
            stored[name] = Stored(file, tuple(shard.get_slice(name).get_shape()))
    return WeightFolder(stored)


def _shards(folder: Path) -> list[Path]:
    if not (folder / INDEX).is_file():
        if not (folder / WEIGHTS).is_file():
            pickle = only_pickle(folder)
            found = f"no {WEIGHTS}" if pickle is None else f"pickled weights ({pickle.name}), which may run code"
            raise UserError(f"{folder}: {found}; expected safetensors")
        return [folder / WEIGHTS]
    try:
        names = dict.fromkeys(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX}: not an index of shards ({error!r}); expected a weight_map") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{folder / INDEX}: names the shard {name!r}; expected a safetensors file beside it")
    return [folder / name for name in names]


def _open(file: Path) -> Any:
    of_index = "" if file.name == WEIGHTS else f", as {INDEX} names them"
    return open_safetensors(file, expected=f"expected safetensors{of_index}")


def expect_same_tensors(found: Mapping[str, object], expected: Mapping[str, object], *, problem: str) -> None:
    """Refuse tensors other than exactly the expected ones; up to ten are named.

    Args:
        found, expected: what a tensor is like (its shape), by name.
        problem: the beginning of the message.
    """
    wrong = [f"missing {name}" for name in expected.keys() - found.keys()]
    wrong += [f"unknown {name}" for name in found.keys() - expected.keys()]
    wrong += [
        f"{name} {found[name]} for {like}" for name, like in expected.items() if name in found and found[name] != like
    ]
    if wrong:
        raise UserError(f"{problem}: {up_to_ten(sorted(wrong))}")


def write_weights(
    folder: Path,
    shapes: Mapping[str, Shape],
    tensor: Callable[[str], Tensor],
    *,
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write tensors to a folder, in shards where they are more than `shard_bytes`.

    Args:
        shapes: of all tensors, by name.
        tensor: gives the tensor of a name; asked for once it is to be written.
        dtype: of all of them in the files.
    """
    sizes = {name: prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and size + sum(sizes[other] for other in shards[-1]) > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: tensor(name).detach().to("cpu", dtype).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors  # before those of the next shard are made
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
