"""Averages of adapters: the arithmetic, what is written about them, and what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multimodal.adapter_merge import START, merge_adapters
from multimodal.errors import UserError
from tests.multimodal.test_adapter_folder import CHAT, CONFIG, WEIGHTS, edit_config, load

TOKENS = "extra_embedding.weight"
Tensors = dict[str, torch.Tensor]


def change(folder: Path, spoil: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    spoil(tensors)
    save_file(tensors, folder / WEIGHTS)


def shift(seed: int) -> Callable[[Tensors], None]:
    """What a run does: another step for each weight."""
    generator = torch.Generator().manual_seed(seed)

    def spoil(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=generator)

    return spoil


@pytest.fixture
def runs(adapter_folder: Path, tmp_path: Path) -> list[str]:
    """Three adapters of one start point."""
    folders = [Path(shutil.copytree(adapter_folder, tmp_path / name)) for name in "abc"]
    for i, folder in enumerate(folders):
        change(folder, shift(i))
        edit_config(folder, lambda c, i=i: c.update(recipe={START: "s", "seed": i}, metrics={"cider_d": 0.1 * i}))
    return list(map(str, folders))


def tensors_of(folder: Any) -> Tensors:
    return load_file(Path(folder) / WEIGHTS)


def test_weighted_mean_of_every_tensor(runs: list[str], tmp_path: Path) -> None:
    merge_adapters(runs, tmp_path / "m", weights=[2, 1, 1])
    a, b, c = map(tensors_of, runs)
    merged = tensors_of(tmp_path / "m")
    assert merged.keys() == a.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, 0.5 * a[name] + 0.25 * b[name] + 0.25 * c[name])
    model = load(tmp_path / "m")
    assert torch.equal(model.decoder.extra_embedding.weight[0], merged[TOKENS][0])
    assert isinstance(model.chat(CHAT, max_new_tokens=3), str)


@pytest.mark.parametrize("weights", [(), (0.5, 0.5), (3, 3)])
def test_an_adapter_averaged_with_itself_is_itself_to_the_bit(
    runs: list[str], tmp_path: Path, weights: tuple[float, ...]
) -> None:
    merge_adapters([runs[0], runs[0]], tmp_path / "m", weights=weights)
    assert (tmp_path / "m" / WEIGHTS).read_bytes() == (Path(runs[0]) / WEIGHTS).read_bytes()


def test_a_weight_of_zero_leaves_one_out(runs: list[str], tmp_path: Path) -> None:
    merge_adapters(runs[:2], tmp_path / "m", weights=[0, 1])
    assert all(torch.equal(tensor, tensors_of(runs[1])[name]) for name, tensor in tensors_of(tmp_path / "m").items())


def test_the_sum_is_in_fp32_whatever_the_tensors_are(runs: list[str], tmp_path: Path) -> None:
    """1 + 2^-7 and 1 - 2^-8 are neighbours of 1 in bf16; three summed in bf16 would end elsewhere."""
    values = torch.tensor([1.0078125, 0.99609375, 1.0078125])
    for folder, value in zip(runs, values, strict=True):
        change(Path(folder), lambda t, value=value: t.update({TOKENS: torch.full_like(t[TOKENS], value).bfloat16()}))
    merge_adapters(runs, tmp_path / "m", weights=[0.3, 0.3, 0.4])
    merged = tensors_of(tmp_path / "m")[TOKENS]
    expected = (values.double() * torch.tensor([0.3, 0.3, 0.4]).double()).sum().bfloat16()
    assert merged.dtype == torch.bfloat16 and (merged == expected).all()


def test_it_names_its_parents_and_claims_no_metrics(runs: list[str], tmp_path: Path) -> None:
    merge_adapters(runs[:2], tmp_path / "m", weights=[3, 1])
    config, first = (json.loads((folder / CONFIG).read_text()) for folder in (tmp_path / "m", Path(runs[0])))
    assert config["metrics"] == {} and config["recipe"][START] == "s"
    assert [p["adapter"] for p in config["recipe"]["average_of"]] == runs[:2]
    assert [p["weight"] for p in config["recipe"]["average_of"]] == [0.75, 0.25]
    digest = hashlib.sha256((Path(runs[1]) / WEIGHTS).read_bytes()).hexdigest()
    assert config["recipe"]["average_of"][1]["sha256"] == digest
    own = {"recipe", "metrics", "versions"}
    assert {k: v for k, v in config.items() if k not in own} == {k: v for k, v in first.items() if k not in own}
    assert "No metric has been measured" in (tmp_path / "m" / "README.md").read_text()


def other_setting(config: dict[str, Any]) -> None:
    config["modalities"]["image"]["stretch"] = True


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "another decoder": (
        lambda f: edit_config(f, lambda c: c.update(decoder_sha256="ab")),
        {},
        "b: cannot be averaged with .*a, which has decoder_sha256 .* for 'ab'; expected the same decoder",
    ),
    "another setting": (
        lambda f: edit_config(f, other_setting),
        {},
        r"which has modalities\.image\.stretch False for True; expected the same",
    ),
    "another modality": (
        lambda f: edit_config(f, lambda c: c["modalities"].update(video={})),
        {},
        "modalities.video None",
    ),
    "another start": (lambda f: edit_config(f, lambda c: c["recipe"].update({START: "t"})), {}, "--any-start"),
    "a tensor less": (lambda f: change(f, lambda t: t.pop(TOKENS)), {}, f"averaged with .*a: missing {TOKENS}$"),
    "a tensor more": (lambda f: change(f, lambda t: t.update(x=torch.zeros(1))), {}, "unknown x$"),
    "another shape": (
        lambda f: change(f, lambda t: t.update({TOKENS: t[TOKENS][:2].clone()})),
        {},
        rf"{TOKENS} \[2, 32\] F32 for \[8, 32\] F32$",
    ),
    "another type": (lambda f: change(f, lambda t: t.update({TOKENS: t[TOKENS].half()})), {}, "F16 for .* F32$"),
    "cut off": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:99]), {}, "b/.*cannot be read"),
    "too few weights": (str, {"weights": [1]}, "1 weights for 2 adapters"),
    "negative weight": (str, {"weights": [2, -1]}, "weights 2 -1: expected none below 0"),
    "no weight": (str, {"weights": [0, 0]}, "expected none below 0, and one above"),
    "no number": (str, {"weights": [1, float("nan")]}, "weights 1 nan: expected"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line_and_writes_nothing(runs: list[str], tmp_path: Path, case: str) -> None:
    spoil, settings, expected = REFUSED[case]
    spoil(Path(runs[1]))
    with pytest.raises(UserError, match=expected) as error:
        merge_adapters(runs[:2], tmp_path / "m", **settings)
    assert "\n" not in str(error.value) and not (tmp_path / "m").exists()


def test_neither_one_alone_nor_over_a_parent(runs: list[str]) -> None:
    with pytest.raises(UserError, match="1 adapters to average; expected two or more"):
        merge_adapters(runs[:1], Path(runs[2]))
    before = tensors_of(runs[0])
    with pytest.raises(UserError, match="one of the adapters to be averaged; expected another folder"):
        merge_adapters(runs, Path(runs[0]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors_of(runs[0]).items())


def test_an_unknown_start_is_said_and_another_one_can_be_allowed(runs: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    edit_config(Path(runs[1]), lambda c: c["recipe"].pop(START))
    merge_adapters(runs[:2], tmp_path / "m", report=said.append)
    assert len(said) == 1 and said[0].startswith(f"{runs[1]}: its start point is not known")
    edit_config(Path(runs[1]), lambda c: c["recipe"].update({START: "t"}))
    merge_adapters(runs[:2], tmp_path / "m", any_start=True, report=said.append)
    assert START not in json.loads((tmp_path / "m" / CONFIG).read_text())["recipe"]


def test_whole_numbers_must_be_equal(runs: list[str], tmp_path: Path) -> None:
    for i, folder in enumerate(runs):
        change(Path(folder), lambda t, i=i: t.update(count=torch.tensor([7, 7 + i // 2])))
    merge_adapters(runs[:2], tmp_path / "m")
    assert tensors_of(tmp_path / "m")["count"].tolist() == [7, 7]
    with pytest.raises(UserError, match="count: whole numbers that differ"):
        merge_adapters(runs, tmp_path / "n")
