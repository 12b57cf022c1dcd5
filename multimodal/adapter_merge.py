"""The average of several adapters (Llama 3 paper, section 7.5.2 / spec A6.2): runs of one start point with other data,
rates or weight decays, ranked by their validation score, the best K averaged. The average of runs that did not start
from the same weights is of no use.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multimodal.adapter_files import WEIGHTS, open_tensors, read_config, versions, write_adapter
from multimodal.adapter_hub import find_adapter
from multimodal.errors import UserError, up_to_ten
from multimodal.weight_folder import expect_same_tensors

START = "start_sha256"
"""In a recipe: hash of the modalities' weights before the first step."""
_MAY_DIFFER = {"format", "decoder", "versions", "recipe", "metrics"}
"""Of `adapter_config.json`. The decoder's name may: its hash may not."""


@dataclass(frozen=True)
class _Parent:
    """An adapter and its share of the average."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    share: float


def merge_adapters(
    names: Sequence[str],
    output: Path,
    *,
    weights: Sequence[float] = (),
    any_start: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Average adapters in fp32 and write an adapter folder, which names its parents. Its metrics are empty: nothing has
    been measured of it.

    Args:
        names: folders, or names on the hub.
        output: the folder to write.
        weights: one for each adapter, in any unit (3 1 are three quarters and one); none: equal ones.
        any_start: average runs that began with different weights.

    Raises:
        UserError: they differ in more than their weights, began with different ones, or cannot be read or written.
    """
    parents = _read_parents(names, weights)
    if output.resolve() in (parent.folder.resolve() for parent in parents):
        raise UserError(f"{output}: one of the adapters to be averaged; expected another folder")
    _expect_same_settings(parents)
    start = _common_start(parents, any_start=any_start, report=report)
    with ExitStack() as stack:
        files = [stack.enter_context(open_tensors(parent.folder)) for parent in parents]
        for parent, file in zip(parents[1:], files[1:], strict=True):
            problem = f"{parent.name}: cannot be averaged with {parents[0].name}"
            expect_same_tensors(_kinds(file), _kinds(files[0]), problem=problem)
        averaged = {name: _average(name, parents, files) for name in files[0].keys()}  # noqa: SIM118
    recipe: dict[str, Any] = {"average_of": [_origin(parent) for parent in parents]}
    if start is not None:
        recipe[START] = start
    config = dict(parents[0].config) | {"versions": versions(), "recipe": recipe, "metrics": {}}
    write_adapter(output, config, averaged)


def _read_parents(names: Sequence[str], weights: Sequence[float]) -> list[_Parent]:
    if len(names) < 2:
        raise UserError(f"{len(names)} adapters to average; expected two or more")
    weights = weights or [1.0] * len(names)
    if len(weights) != len(names):
        raise UserError(f"{len(weights)} weights for {len(names)} adapters; expected one for each")
    if not all(isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
        raise UserError(f"weights {' '.join(map(str, weights))}: expected none below 0, and one above")
    folders = [find_adapter(name) for name in names]
    shares = [weight / sum(weights) for weight in weights]
    return [
        _Parent(name, folder, read_config(folder), share)
        for name, folder, share in zip(names, folders, shares, strict=True)
    ]


def _expect_same_settings(parents: Sequence[_Parent]) -> None:
    """Raises UserError unless all are of one decoder and alike in all that is no weight."""
    first = _settings(parents[0].config)
    for parent in parents[1:]:
        wrong = _differences(first, _settings(parent.config))
        if wrong:
            raise UserError(
                f"{parent.name}: cannot be averaged with {parents[0].name}, which has {up_to_ten(wrong)}; "
                "expected the same decoder, modalities and settings"
            )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that must be alike; of an encoder that is not in the folder its hash, wherever it lies."""
    borrowed = {place: origin["sha256"] for place, origin in config.get("borrowed", {}).items()}
    return {name: value for name, value in config.items() if name not in _MAY_DIFFER} | {"borrowed": borrowed}


def _differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Settings of unlike value, by their dotted names."""
    if one == other:
        return []
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)):
        return [f"{place} {one!r} for {other!r}"]
    names = [*one, *(name for name in other if name not in one)]
    parts = [_differences(one.get(name), other.get(name), f"{place}.{name}".strip(".")) for name in names]
    return [difference for part in parts for difference in part]


def _common_start(parents: Sequence[_Parent], *, any_start: bool, report: Callable[[str], None]) -> str | None:
    """The hash of the weights that all runs began with, if it is known of all."""
    starts = {parent.name: parent.config.get("recipe", {}).get(START) for parent in parents}
    unknown = [name for name, start in starts.items() if start is None]
    if len({start for start in starts.values() if start is not None}) > 1 and not any_start:
        raise UserError(
            f"{', '.join(starts)}: began with different weights; expected runs of one start point "
            "(--any-start averages them all the same)"
        )
    for name in unknown:
        report(f"{name}: its start point is not known; the average is of use only if it is that of the others")
    return next(iter(starts.values())) if len(set(starts.values())) == 1 else None


def _kinds(file: Any) -> dict[str, str]:
    """Shape and type of each tensor of a file, without reading it."""
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {name: f"{part.get_shape()} {part.get_dtype()}" for name, part in slices.items()}


def _average(name: str, parents: Sequence[_Parent], files: Sequence[Any]) -> Tensor:
    """One tensor, summed in fp32 (or better) and given back in its own type."""
    first: Tensor = files[0].get_tensor(name)
    if not first.is_floating_point():
        if not all(torch.equal(first, file.get_tensor(name)) for file in files[1:]):
            raise UserError(f"{name}: whole numbers that differ between the adapters, which have no average")
        return first
    total = torch.zeros(first.shape, dtype=torch.promote_types(first.dtype, torch.float32))
    for parent, file in zip(parents, files, strict=True):
        total += parent.share * file.get_tensor(name).to(total.dtype)
    return total.to(first.dtype)


def _origin(parent: _Parent) -> dict[str, Any]:
    """What the recipe says of a parent."""
    with (parent.folder / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"adapter": parent.name, "sha256": digest, "weight": parent.share}
