"""Which parameters are trained, which decay, and how the learning rate goes."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multimodal.errors import UserError
from multimodal.train import TrainConfig
from multimodal.train.optim import (
    build_optimizer,
    freeze_and_select,
    is_decayed,
    learning_rate_factor,
    scale_and_clip,
    set_learning_rates,
)
from tests.tiny_models import tiny_video_model


class Task(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"linear": nn.Linear(3, 3), "norm": nn.LayerNorm(3), "table": nn.Embedding(4, 3)})
        self.body.register_parameter("class_token", nn.Parameter(torch.zeros(1, 1, 3)))
        self.body.register_parameter("position_embedding", nn.Parameter(torch.zeros(5, 3)))
        self.gates = nn.ParameterList([torch.zeros(())])

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {"body": list(self.body.named_parameters()), "gates": list(self.gates.named_parameters())}

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        raise NotImplementedError


def config(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {"steps": 100, "batch_size": 1, "learning_rates": {"body": 1e-3, "gates": 1e-2}}
    return TrainConfig(**(defaults | changes))


def build(task: Task, settings: TrainConfig) -> torch.optim.AdamW:
    return build_optimizer(task, freeze_and_select(task, settings.learning_rates), settings)


def test_only_matrices_decay() -> None:
    task = Task()
    optimizer = build(task, config(weight_decay=0.1))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(task.body["linear"].weight)}
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in everything} == {id(p) for p in task.parameters()}
    assert len(everything) == len(list(task.parameters()))


def test_tables_and_latents_of_the_parts_do_not_decay() -> None:
    named = dict(tiny_video_model().named_parameters())
    tables = {name for name, p in named.items() if p.dim() > 1 and not is_decayed(name, p)}
    encoder = "modalities.image.encoder"
    assert tables == {
        f"{encoder}.positions.local_LD",
        f"{encoder}.positions.tiled_RLD",
        f"{encoder}.pre_tile.table_RD",
        f"{encoder}.post_tile.table_RD",
        "decoder.adapters.video.aggregator.latents_QD",
    }


def test_each_part_has_its_own_rate() -> None:
    optimizer = build(Task(), config())
    set_learning_rates(optimizer, 0.5)
    assert {(group["part"], group["lr"]) for group in optimizer.param_groups} == {("body", 5e-4), ("gates", 5e-3)}


def test_a_frozen_part_is_no_business_of_the_optimizer_and_can_thaw() -> None:
    task = Task()
    optimizer = build(task, config(learning_rates={"body": 0, "gates": 1}))
    assert [group["part"] for group in optimizer.param_groups] == ["gates"]
    assert not task.body["linear"].weight.requires_grad
    build(task, config())
    assert task.body["linear"].weight.requires_grad


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"body": 1.0}, "expected a rate for each of body, gates"),
        ({"body": 1.0, "gates": 1.0, "head": 1.0}, "names body, gates, head"),
        ({"body": 0.0, "gates": 0.0}, "freezes every part"),
    ],
)
def test_rates_that_do_not_fit_the_task(rates: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        freeze_and_select(Task(), rates)


def test_a_part_without_parameters_needs_no_rate_and_may_have_one() -> None:
    task = Task()
    task.gates = nn.ModuleDict()
    for rates in ({"body": 1.0}, {"body": 1.0, "gates": 1.0}):
        assert set(freeze_and_select(task, rates)) == {"body"}


def test_trained_weights_must_be_fp32() -> None:
    with pytest.raises(ValueError, match="fp32"):
        freeze_and_select(Task().bfloat16(), {"body": 1, "gates": 1})


def test_cosine_with_warmup() -> None:
    settings = config(warmup=10, min_lr_ratio=0.1)
    factors = [learning_rate_factor(settings, step) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(factors) == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55)
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[10:]))
    assert learning_rate_factor(config(warmup=0.1), 4) == learning_rate_factor(settings, 4)


def test_constant_schedule() -> None:
    assert {learning_rate_factor(config(schedule="constant", warmup=0), step) for step in range(100)} == {1.0}


def test_the_clock_drives_the_schedule_where_it_is_ahead() -> None:
    settings = config(warmup=0, max_minutes=1, min_lr_ratio=0.0)
    assert learning_rate_factor(settings, 0, elapsed=30) == pytest.approx(0.5)
    assert learning_rate_factor(settings, 50, elapsed=3) == pytest.approx(0.5)
    assert learning_rate_factor(settings, 0, elapsed=300) == pytest.approx(0)


def test_gradients_are_divided_then_clipped() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([parameter])
    for clip_norm, expected in ((0.0, [3.0, 4.0]), (10.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        parameter.grad = torch.tensor([6.0, 8.0])
        norm = scale_and_clip(optimizer, weight=2, clip_norm=clip_norm)
        assert norm.item() == pytest.approx(5.0)
        torch.testing.assert_close(parameter.grad, torch.tensor(expected))


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"batch_size": 6, "accumulate": 4},
        {"learning_rates": {"body": -1.0}},
        {"warmup": -0.1},
        {"min_lr_ratio": 1.5},
        {"betas": (0.9, 1.0)},
        {"clip_norm": float("nan")},
        {"keep": 0},
        {"max_minutes": 0.0},
    ],
)
def test_settings_out_of_range_name_their_flag(bad: dict[str, Any]) -> None:
    flag = "--" + list(bad)[-1].replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag} is .*: expected "):
        config(**bad)
