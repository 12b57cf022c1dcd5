"""Folders of safetensors: what was written comes back, shard by shard, and wrong tensors are named."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from multimodal import weight_folder as module
from multimodal.errors import UserError
from multimodal.weight_folder import INDEX, WEIGHTS, expect_same_tensors, open_weights, write_weights

TENSORS = {f"t{i}": torch.arange(float(i), i + 6).view(2, 3) for i in range(5)} | {"scalar": torch.tensor(2.0)}
SHAPES = {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}


def write(folder: Path, **settings: Any) -> Path:
    write_weights(folder, SHAPES, TENSORS.__getitem__, dtype=torch.float32, **settings)
    return folder


@pytest.mark.parametrize(("shard_bytes", "files"), [(10**6, 1), (48, 3), (1, 6)])
def test_what_was_written_comes_back(tmp_path: Path, shard_bytes: int, files: int) -> None:
    weights = open_weights(write(tmp_path, shard_bytes=shard_bytes))
    assert weights.shapes == SHAPES and weights.dtype("t3") == torch.float32
    found = dict(weights)
    assert found.keys() == TENSORS.keys() and all(torch.equal(t, TENSORS[name]) for name, t in found.items())
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / INDEX).exists() == (files > 1) and (tmp_path / WEIGHTS).exists() == (files == 1)


def test_one_shard_is_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = open_weights(write(tmp_path, shard_bytes=48))

    class Opened:
        """A shard as `safe_open` gives it, which can be asked whether it is still there."""

        def __init__(self, file: Path) -> None:
            self.shard = real(file)

        def get_tensor(self, name: str) -> torch.Tensor:
            return self.shard.get_tensor(name)

    opened: list[weakref.ref[Opened]] = []

    def noted(file: Path) -> Opened:
        shard = Opened(file)
        opened.append(weakref.ref(shard))
        return shard

    real = module._open
    monkeypatch.setattr(module, "_open", noted)
    counts = [(len(opened), sum(shard() is not None for shard in opened)) for _ in weights]
    assert [number for number, _ in counts] == [1, 1, 2, 2, 3, 3] and {there for _, there in counts} == {1}


def test_one_shard_is_in_memory_while_writing(tmp_path: Path) -> None:
    """Tensors are made one shard after the other, and those of a written shard are let go first."""
    made: list[weakref.ref[Any]] = []
    most = []

    def tensor(name: str) -> torch.Tensor:
        copy = TENSORS[name].clone()
        made.append(weakref.ref(copy.untyped_storage()))
        most.append(sum(storage() is not None for storage in made))
        return copy

    write_weights(tmp_path, SHAPES, tensor, dtype=torch.float32, shard_bytes=48)
    assert most == [1, 2, 1, 2, 1, 2]


def test_a_dtype_for_all_of_them(tmp_path: Path) -> None:
    write_weights(tmp_path, SHAPES, TENSORS.__getitem__, dtype=torch.bfloat16)
    assert open_weights(tmp_path).dtype("scalar") == torch.bfloat16


def test_wrong_tensors_are_named_up_to_ten() -> None:
    expect_same_tensors({"a": [1]}, {"a": [1]}, problem="file")
    with pytest.raises(UserError) as caught:
        expect_same_tensors({"a": [1], "c": [2]}, {"a": [2], "b": [1]}, problem="file")
    assert str(caught.value) == "file: a [1] for [2]; missing b; unknown c"
    with pytest.raises(UserError, match=r"and 3 more$") as caught:
        expect_same_tensors({}, {f"n{i:02}": 1 for i in range(13)}, problem="file")
    assert str(caught.value).count("missing") == 10


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors; expected safetensors"):
        open_weights(tmp_path)
    (tmp_path / "consolidated.00.pth").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"pickled weights \(consolidated.00.pth\)"):
        open_weights(tmp_path)
