"""Muon beside AdamW: each trains its parameters as alone, and a run goes on exactly."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from multimodal.errors import UserError
from multimodal.train.config import TrainConfig
from multimodal.train.muon import MuonWithAdamW, orthogonalise
from multimodal.train.optim import build_optimizer, freeze_and_select, set_learning_rates
from tests.multimodal.train.test_loop import assert_identical, final_tensors
from tests.multimodal.train.test_low_memory import WideTask, config, run
from tests.multimodal.train.test_optim import Task


def test_the_weights_of_linear_layers_alone_are_muons() -> None:
    task = Task()  # it has a norm, a table and positions too
    task.body["convolution"] = nn.Conv1d(2, 2, 3)
    settings = TrainConfig(
        steps=10, batch_size=1, learning_rates={"body": 1e-3, "gates": 1e-2}, optimizer="muon", weight_decay=0.1
    )
    optimizer = build_optimizer(task, freeze_and_select(task, settings.learning_rates), settings)
    set_learning_rates(optimizer, 0.5)
    by_muon = [group for group in optimizer.param_groups if "ns_steps" in group]
    assert [(group["part"], group["lr"], group["weight_decay"]) for group in by_muon] == [("body", 5e-4, 0.1)]
    assert [p is task.body["linear"].weight for p in by_muon[0]["params"]] == [True]
    others = [id(p) for group in optimizer.param_groups if "ns_steps" not in group for p in group["params"]]
    everything = {id(p) for named in task.parts().values() for _, p in named}
    assert len(others) == len(set(others)) and {*others, id(task.body["linear"].weight)} == everything


SHAPES = ((6, 4), (4, 6), (6, 4), (3, 3), (6, 4), (5,))


def stepped(optimizers: Callable[[list[nn.Parameter]], list[torch.optim.Optimizer]]) -> list[nn.Parameter]:
    """Parameters of `SHAPES` after three steps from equal weights by equal gradients; the second has none at first."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.ones(shape)) for shape in SHAPES]
    chosen = optimizers(parameters)
    for step in range(3):
        for index, p in enumerate(parameters):
            gradient = torch.randn(p.shape, generator=generator)
            p.grad = None if (step, index) == (0, 1) else gradient
        for optimizer in chosen:
            optimizer.step()
    return parameters


def of_torch(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    muon = torch.optim.Muon(parameters[:-1], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(parameters[-1:], lr=0.1, weight_decay=0.2, betas=(0.9, 0.95))]


def of_graft(parameters: list[nn.Parameter]) -> list[torch.optim.Optimizer]:
    group = {"params": parameters, "lr": 0.1, "weight_decay": 0.2}
    return [MuonWithAdamW([group], parameters[:-1], betas=(0.9, 0.95))]


@pytest.mark.parametrize("stacked_numbers", [1, 48, 2**24])
def test_steps_are_those_of_each_of_torch_alone(monkeypatch: pytest.MonkeyPatch, stacked_numbers: int) -> None:
    monkeypatch.setattr("multimodal.train.muon.has_fast_bf16", lambda device: True)
    monkeypatch.setattr("multimodal.train.muon._STACKED_NUMBERS", stacked_numbers)
    assert all(torch.equal(p, q) for p, q in zip(stepped(of_graft), stepped(of_torch), strict=True))


def test_without_bf16_hardware_steps_are_the_same_but_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multimodal.train.muon.has_fast_bf16", lambda device: False)
    exact, rounded = stepped(of_graft), stepped(of_torch)
    torch.testing.assert_close(exact, rounded, atol=2e-3, rtol=0)
    assert not any(torch.equal(p, q) for p, q in zip(exact[:-1], rounded[:-1], strict=True))


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_singular_values_come_near_one(shape: tuple[int, int]) -> None:
    given = (
        torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    )
    found = orthogonalise(given, coefficients=(3.4445, -4.7750, 2.0315), steps=5, dtype=torch.float32)
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    assert torch.linalg.svdvals(found).min() > 0.5 and torch.linalg.svdvals(found).max() < 1.3
    cosine = torch.cosine_similarity(found.flatten(1), (u @ v).flatten(1))
    assert cosine.min() > 0.95  # the singular vectors are those given


@pytest.mark.parametrize("shape", [(8, 8), (8, 16), (32, 8), (8, 64)])
def test_long_matrices_take_a_shorter_way_to_the_same(shape: tuple[int, int]) -> None:
    given = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = orthogonalise(given, coefficients=(3.4445, -4.7750, 2.0315), steps=5, dtype=torch.float64)
    found = orthogonalise(given, coefficients=(3.4445, -4.7750, 2.0315), steps=5, dtype=torch.float32)
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=0)


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    run(tmp_path / "whole", optimizer="muon", steps=6)
    run(tmp_path / "cut", optimizer="muon", steps=6, save_every=3)
    for file in (tmp_path / "cut" / "checkpoints" / "step-00000006").iterdir():
        file.unlink()
    run(tmp_path / "cut", optimizer="muon", steps=6, save_every=3, resume=True)
    expected = final_tensors(tmp_path / "whole", 6)
    assert any(name.endswith("momentum_buffer") for name in expected)
    assert any(name.endswith("exp_avg") for name in expected)
    assert_identical(final_tensors(tmp_path / "cut", 6), expected)


def test_weights_in_bf16_are_refused() -> None:
    task, settings = WideTask(), config(optimizer="muon", master_weights="bf16", precision="bf16")
    with pytest.raises(UserError, match="expected fp32 with --optimizer muon"):
        build_optimizer(task, freeze_and_select(task, settings.learning_rates), settings)
