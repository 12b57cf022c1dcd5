"""Pickles are told from safetensors by what they are called and by what they are."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from multimodal.errors import UserError
from multimodal.safe_weights import expect_safetensors, only_pickle, open_safetensors

TENSORS = {"a": torch.zeros(3)}


def test_safetensors_win_over_pickles_beside_them(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save(TENSORS, tmp_path / "training_args.bin")
    assert only_pickle(tmp_path) is None
    expect_safetensors(tmp_path, what="decoder", reader="AutoModel")


def test_neither_is_for_others_to_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert only_pickle(tmp_path) is None and only_pickle(tmp_path / "gone") is None


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pickles_are_found(tmp_path: Path, name: str, zipped: bool) -> None:
    if zipped:
        torch.save(TENSORS, tmp_path / name)
    else:
        (tmp_path / name).write_bytes(pickle.dumps({"a": [0.0] * 9}))
    assert only_pickle(tmp_path) == tmp_path / name
    with pytest.raises(UserError, match=f"decoder .*: its weights are a pickle .{name}"):
        expect_safetensors(tmp_path, what="decoder", reader="AutoModel")


def test_tensors_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    with open_safetensors(tmp_path / "a.safetensors", expected="expected tensors") as tensors:
        assert list(tensors.keys()) == ["a"] and torch.equal(tensors.get_tensor("a"), TENSORS["a"])
    opened = open_safetensors(tmp_path / "a.safetensors", expected="expected tensors")
    assert torch.equal(opened.get_tensor("a"), TENSORS["a"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.unlink(), "a.safetensors: no such file"),
        (lambda file: file.write_bytes(file.read_bytes()[:-5]), "a.safetensors: cannot be read, perhaps truncated"),
        (lambda file: file.write_bytes(b""), "a.safetensors: cannot be read"),
        (lambda file: (file.unlink(), file.mkdir()), "a.safetensors: cannot be read"),
        (lambda file: (file.unlink(), torch.save(TENSORS, file)), "a.safetensors: a pickle, which may run code"),
        (lambda file: (file.unlink(), torch.save(TENSORS, file.with_name("b.bin"))), "b.bin: a pickle"),
    ],
)
def test_what_cannot_be_opened_is_one_line(tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    file = tmp_path / "a.safetensors"
    save_file(TENSORS, file)
    spoil(file)
    with pytest.raises(UserError, match=f"{tmp_path}/{said}.*; expected tensors$") as caught:
        open_safetensors(file, expected="expected tensors")
    assert "\n" not in str(caught.value)


def test_a_pickle_among_shards_is_named(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model-1.safetensors")
    torch.save(TENSORS, tmp_path / "model-2.safetensors")
    with pytest.raises(UserError, match=r"model-2\.safetensors: a pickle"):
        open_safetensors(tmp_path / "model-2.safetensors", expected="expected tensors")


def test_a_long_header_is_no_pickle(tmp_path: Path) -> None:
    """One of 0x80 bytes and more begins with the same byte as a pickle."""
    for length in range(1, 200):
        save_file({"a" * length: torch.zeros(1)}, tmp_path / "model.safetensors")
        if (tmp_path / "model.safetensors").read_bytes()[0] == 0x80:
            break
    else:
        pytest.fail("no header of that length")
    assert only_pickle(tmp_path) is None
