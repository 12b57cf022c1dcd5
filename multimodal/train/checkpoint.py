"""Checkpoints from which a run goes on exactly, and which no kill can spoil.

A checkpoint is a folder `checkpoints/step-00000042` with `tensors.safetensors` (trained tensors, optimizer, generators)
and `state.json` (all else). It is written under a temporary name and renamed when it is complete on disk; what a kill
leaves behind has the temporary name and is ignored. Nothing is unpickled.
"""

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multimodal.errors import UserError
from multimodal.train import rng
from multimodal.train.low_memory import Parts, packed_state, unpacked_state


@dataclass
class Progress:
    """How far a run is. `step` is also the whole state of the data loader; `tokens` sums the weight of the loss."""

    step: int = 0
    seconds: float = 0.0
    samples: int = 0
    tokens: int = 0
    skipped: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    fingerprint: dict[str, int] = field(default_factory=dict)
    """What the order of samples depends on; must be the same on resume."""
    optimizer: str = "adamw, fp32"
    """Which one, and how trained weights are kept; likewise."""


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, newest first."""
    return steps_in(run_dir / "checkpoints")


def steps_in(folder: Path) -> list[Path]:
    """What `write_step` wrote there, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def save_checkpoint(
    run_dir: Path, *, parts: Parts, optimizer: torch.optim.Optimizer, progress: Progress, keep: int
) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Raises `UserError` if it cannot be written (a full disk); older checkpoints are then untouched.
    """
    generators = rng.capture()
    state = {"progress": asdict(progress), "generators": generators.plain}
    tensors = weights(parts) | _states(parts, optimizer, generators)
    return write_step(run_dir / "checkpoints", progress.step, tensors=tensors, state=state, keep=keep)


def write_step(folder: Path, step: int, *, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write `folder/step-00000042`, whole or not at all, in the place of one that is there; then remove all but this
    and the newest others, `keep` in all.

    Raises `UserError` if it cannot be written; the others are then untouched.
    """
    final = folder / f"step-{step:08d}"
    temporary, old = (final.with_name(f"{kind}-{final.name}") for kind in ("tmp", "tmp-old"))
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / "tensors.safetensors")
        (temporary / "state.json").write_text(json.dumps(state))
        for path in (temporary / "tensors.safetensors", temporary / "state.json", temporary):
            _sync(path)
        if final.exists():
            os.replace(final, old)
        os.replace(temporary, final)
        _sync(final.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not final.exists():
            os.replace(old, final)
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write checkpoint {final}: {reason}: expected a writable disk with room") from error
    others = [step for step in steps_in(folder) if step != final]
    for past in [*others[keep - 1 :], *folder.glob("tmp-*")]:
        shutil.rmtree(past, ignore_errors=True)
    return final


def load_newest(run_dir: Path, *, parts: Parts, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restore the newest readable checkpoint: tensors, optimizer and generators. None if there is none.

    An unreadable one is put aside under another name, with a line on stderr. Raises `UserError` if the checkpoint
    belongs to another model.
    """
    for folder in list_checkpoints(run_dir):
        try:
            state = json.loads((folder / "state.json").read_text())
            progress, plain = Progress(**state["progress"]), state["generators"]
            tensors = load_file(folder / "tensors.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            print(f"checkpoint {folder} is unreadable ({error}): trying the one before it", file=sys.stderr)
            folder.rename(folder.with_name(f"unreadable-{folder.name}"))
            continue
        restore_weights(folder, tensors, parts)
        _restore_optimizer(tensors, parts, optimizer)
        rng.restore(rng.Generators(_select(tensors, "rng/"), plain))
        return progress
    return None


def _by_name(parts: Parts) -> dict[str, nn.Parameter]:
    return {f"{part}/{name}": parameter for part, named in parts.items() for name, parameter in named}


def _select(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def weights(parts: Parts) -> dict[str, Tensor]:
    """Trained tensors as they are kept on disk."""
    return {f"model/{name}": parameter.detach() for name, parameter in _by_name(parts).items()}


def _states(parts: Parts, optimizer: torch.optim.Optimizer, generators: rng.Generators) -> dict[str, Tensor]:
    tensors = {f"rng/{name}": state for name, state in generators.tensors.items()}
    for name, parameter in _by_name(parts).items():
        state = packed_state(optimizer.state.get(parameter, {}))
        tensors |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
    return tensors


def restore_weights(folder: Path, tensors: dict[str, Tensor], parts: Parts) -> None:
    """Put back what `weights` gave.

    Raises `UserError` if it is of another model.
    """
    parameters, saved = _by_name(parts), _select(tensors, "model/")
    if saved.keys() != parameters.keys() or any(saved[name].shape != p.shape for name, p in parameters.items()):
        odd = sorted(saved.keys() ^ parameters.keys()) or [
            n for n, p in parameters.items() if saved[n].shape != p.shape
        ]
        raise UserError(f"{folder} is of another model ({odd[0]} differs): expected the settings of the first run")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def _restore_optimizer(tensors: dict[str, Tensor], parts: Parts, optimizer: torch.optim.Optimizer) -> None:
    names = {id(parameter): name for name, parameter in _by_name(parts).items()}
    order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Any]] = {
        i: unpacked_state(_select(tensors, f"optimizer/{names[id(parameter)]}/"), parameter)
        for i, parameter in enumerate(order)
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {i: state for i, state in states.items() if state}, "param_groups": groups})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
