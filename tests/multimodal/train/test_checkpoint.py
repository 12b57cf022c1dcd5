"""A checkpoint restores everything, and a spoiled one is passed over."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from multimodal.errors import UserError
from multimodal.train.checkpoint import Parts, Progress, list_checkpoints, load_newest, save_checkpoint
from multimodal.train.rng import seed_everything


def model(width: int = 3) -> tuple[Parts, torch.optim.AdamW]:
    layer = nn.Linear(2, width)
    parts: Parts = {"layer": list(layer.named_parameters())}
    return parts, torch.optim.AdamW([{"params": [layer.bias]}, {"params": [layer.weight]}])


def move(parts: Parts, optimizer: torch.optim.AdamW) -> None:
    for _, parameter in parts["layer"]:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def save(run_dir: Path, parts: Parts, optimizer: torch.optim.AdamW, step: int, keep: int = 2) -> Path:
    return save_checkpoint(run_dir, parts=parts, optimizer=optimizer, progress=Progress(step=step), keep=keep)


def values(parts: Parts) -> list[torch.Tensor]:
    return [parameter.detach().clone() for _, parameter in parts["layer"]]


def test_round_trip_of_weights_moments_and_generators(tmp_path: Path) -> None:
    parts, optimizer = model()
    move(parts, optimizer)
    progress = Progress(
        step=3, seconds=1.5, samples=9, tokens=20, skipped=1, metrics={"a": 0.1}, fingerprint={"seed": 2}
    )
    save_checkpoint(tmp_path, parts=parts, optimizer=optimizer, progress=progress, keep=1)
    drawn = torch.rand(2), random.random(), np.random.rand()
    seed_everything(99)
    other, other_optimizer = model()
    assert load_newest(tmp_path, parts=other, optimizer=other_optimizer) == progress
    again = torch.rand(2), random.random(), np.random.rand()
    assert torch.equal(drawn[0], again[0]) and drawn[1:] == again[1:]
    for pair in ((parts, optimizer), (other, other_optimizer)):
        seed_everything(1)
        move(*pair)  # equal only if the moments are restored too
    assert all(torch.equal(a, b) for a, b in zip(values(parts), values(other), strict=True))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    parts, optimizer = model()
    for step in (5, 10, 100):
        save(tmp_path, parts, optimizer, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000100", "step-00000010"]


def test_what_a_kill_left_is_ignored_and_cleared_later(tmp_path: Path) -> None:
    parts, optimizer = model()
    complete = save(tmp_path, parts, optimizer, 5)
    half = complete.with_name("tmp-step-00000010")
    shutil.copytree(complete, half)
    (half / "tensors.safetensors").write_bytes(b"half")
    found = load_newest(tmp_path, parts=parts, optimizer=optimizer)
    assert found is not None and found.step == 5
    save(tmp_path, parts, optimizer, 7)
    assert not half.exists()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_put_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str) -> None:
    parts, optimizer = model()
    save(tmp_path, parts, optimizer, 5)
    before = values(parts)
    move(parts, optimizer)
    damaged = save(tmp_path, parts, optimizer, 10) / file
    damaged.write_bytes(damaged.read_bytes()[:-20])
    found = load_newest(tmp_path, parts=parts, optimizer=optimizer)
    assert found is not None and found.step == 5
    assert all(torch.equal(a, b) for a, b in zip(values(parts), before, strict=True))
    assert "step-00000010 is unreadable" in capsys.readouterr().err
    save(tmp_path, parts, optimizer, 8, keep=1)  # must not lose against the damaged one's higher number
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000008"]


def test_nothing_to_load(tmp_path: Path) -> None:
    parts, optimizer = model()
    assert load_newest(tmp_path, parts=parts, optimizer=optimizer) is None


def test_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path, *model(3), 5)
    parts, optimizer = model(4)
    with pytest.raises(UserError, match=r"step-00000005 is of another model \(layer/weight differs\)"):
        load_newest(tmp_path, parts=parts, optimizer=optimizer)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    parts, optimizer = model()
    (tmp_path / "checkpoints").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot write checkpoint") as caught:
        save(tmp_path, parts, optimizer, 5)
    assert "\n" not in str(caught.value)


def test_no_pickle_is_written(tmp_path: Path) -> None:
    folder = save(tmp_path, *model(), 5)
    assert sorted(path.name for path in folder.iterdir()) == ["state.json", "tensors.safetensors"]
    json.loads((folder / "state.json").read_text())
