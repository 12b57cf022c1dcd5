"""Muon beside AdamW: each trains its parameters as alone, and a run goes on exactly."""

from pathlib import Path

import pytest
import torch
from torch import nn

from multimodal.errors import UserError
from multimodal.train.config import TrainConfig
from multimodal.train.muon import MuonWithAdamW
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


def test_steps_are_those_of_each_optimizer_alone() -> None:
    torch.manual_seed(0)
    together, alone = [[nn.Parameter(torch.ones(6, 4)), nn.Parameter(torch.ones(5))] for _ in range(2)]
    both = MuonWithAdamW([{"params": together, "lr": 0.1}], together[:1], betas=(0.9, 0.95))
    muon = torch.optim.Muon(alone[:1], lr=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(alone[1:], lr=0.1, betas=(0.9, 0.95))
    for _ in range(3):
        for p, q in zip(together, alone, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        both.step()
        muon.step()
        adamw.step()
    assert all(torch.equal(p, q) for p, q in zip(together, alone, strict=True))
    assert not torch.equal(together[0], torch.ones(6, 4))


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
