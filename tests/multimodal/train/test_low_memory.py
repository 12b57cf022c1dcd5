"""Training with 8-bit averages and bf16 weights: it learns as usual, goes on exactly, and gives fp32 back."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multimodal.errors import UserError
from multimodal.train import TrainConfig, seed_everything, train
from multimodal.train.low_memory import low_memory_adamw, packed_state, unpacked_state
from multimodal.train.optim import build_optimizer, freeze_and_select, set_learning_rates
from tests.multimodal.train.test_loop import ToyData, assert_identical, final_tensors, log_lines

WIDTH = 64  # a matrix of this width is large enough for 8 bits
EIGHT, HALF, BOTH = (
    {"optimizer": "adamw8bit"},
    {"master_weights": "bf16", "precision": "bf16"},
    {"optimizer": "adamw8bit", "master_weights": "bf16", "precision": "bf16"},
)
ways = pytest.mark.parametrize("way", [EIGHT, HALF, BOTH], ids=["8bit", "bf16", "both"])


class WideTask(nn.Module):
    """Three layers, the first of them frozen by its rate; notes the types that it meets."""

    def __init__(self) -> None:
        super().__init__()
        seed_everything(0)
        self.frozen = nn.Linear(1, WIDTH)
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU())
        self.head = nn.Linear(WIDTH, 1)
        self.met: set[tuple[torch.dtype, torch.dtype | None]] = set()

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {name: list(getattr(self, name).named_parameters()) for name in ("frozen", "body", "head")}

    def loss(self, batch: list[Tensor]) -> tuple[Tensor, int]:
        weight = self.head.weight
        self.met.add((weight.dtype, None if weight.grad is None else weight.grad.dtype))
        x = torch.cat(batch)
        out = self.head(self.body(torch.tanh(self.frozen(4 * x[:, None]))))[:, 0].float()
        return ((out - x) ** 2).sum(), x.numel()


def config(**changes: Any) -> TrainConfig:
    rates = {"frozen": 0.0, "body": 5e-3, "head": 1e-2}
    defaults: dict[str, Any] = {"steps": 4, "batch_size": 8, "learning_rates": rates, "tensorboard": False}
    return TrainConfig(**(defaults | changes))


def run(run_dir: Path, *, task: WideTask | None = None, **options: Any) -> WideTask:
    of_train = {key: options.pop(key) for key in ("resume", "evaluate") if key in options}
    task = task or WideTask()
    train(task=task, dataset=ToyData(), collate=list, config=config(**options), run_dir=run_dir, **of_train)
    return task


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in log_lines(run_dir)]


@ways
def test_it_learns_as_with_usual_states(tmp_path: Path, way: dict[str, Any]) -> None:
    task, plain = run(tmp_path / "a", steps=25, **way), run(tmp_path / "b", steps=25)
    found, usual = (sum(losses(tmp_path / name)[-5:]) for name in ("a", "b"))
    assert found < 0.3 * sum(losses(tmp_path / "a")[:5]) and found < 3 * usual + 0.01
    assert torch.equal(task.frozen.weight, plain.frozen.weight) and not task.frozen.weight.requires_grad
    assert all(p.dtype is torch.float32 for p in task.parameters())
    exact = all(torch.equal(p, p.bfloat16().float()) for p in task.body.parameters())
    assert exact == ("master_weights" in way)


@ways
def test_k_steps_and_k_more_equal_2k_steps(tmp_path: Path, way: dict[str, Any]) -> None:
    flat = {"schedule": "constant", "warmup": 0, **way}
    whole, part = tmp_path / "whole", tmp_path / "part"
    one = run(whole, **flat)
    run(part, steps=2, **flat)
    seed_everything(7)
    two = run(part, resume=True, **flat)
    assert losses(part) == losses(whole)
    saved = final_tensors(whole, 4)
    assert_identical(final_tensors(part, 4), saved)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    kinds = {name.rsplit("/")[-1]: tensor.dtype for name, tensor in saved.items() if "body/0.weight" in name}
    if "optimizer" in way:
        assert kinds["exp_avg.codes"] == kinds["exp_avg_sq.codes"] == torch.uint8
    if "master_weights" in way:
        assert kinds["0.weight"] == torch.bfloat16 and kinds.get("exp_avg", torch.bfloat16) == torch.bfloat16


@ways
def test_groups_keep_their_own_rate_and_decay(way: dict[str, Any]) -> None:
    settings = config(**way, weight_decay=0.1)
    task = WideTask()
    optimizer = build_optimizer(task, freeze_and_select(task, settings.learning_rates), settings)
    set_learning_rates(optimizer, 0.5)
    found = {(group["part"], float(group["lr"]), group["weight_decay"]) for group in optimizer.param_groups}
    assert {(part, decay) for part, _, decay in found} == {("body", 0.1), ("body", 0.0), ("head", 0.0)}
    assert all(rate == pytest.approx({"body": 2.5e-3, "head": 5e-3}[part]) for part, rate, _ in found)


def test_rates_that_differ_move_parts_differently(tmp_path: Path) -> None:
    rates = {"frozen": 0.0, "body": 1e-2, "head": 1e-6}
    before, task = WideTask(), run(tmp_path, steps=2, learning_rates=rates, **EIGHT)
    body, head = (
        (now - then).abs().max()
        for now, then in (
            (task.body.get_parameter("0.weight"), before.body.get_parameter("0.weight")),
            (task.head.weight, before.head.weight),
        )
    )
    assert body > 1e-3 and 0 < head < 1e-5
    assert log_lines(tmp_path)[0]["learning_rate"] == pytest.approx({"body": 1e-2, "head": 1e-6})


def test_steps_too_small_for_bf16_count_on_average() -> None:
    weight = nn.Parameter(torch.ones(1 << 16, dtype=torch.bfloat16))
    settings = config(**HALF)
    optimizer = low_memory_adamw([{"params": [weight], "lr": 1e-4, "weight_decay": 0.0}], settings)
    torch.manual_seed(0)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    moved = 1 - weight.detach().float()
    assert moved.mean().item() == pytest.approx(1e-4, rel=0.15)
    assert set(moved.unique().tolist()) == {0.0, 2.0**-8}


@pytest.mark.parametrize("accumulate", [1, 4])
def test_weights_are_fp32_for_evaluation_and_gradients_where_they_are_summed(tmp_path: Path, accumulate: int) -> None:
    task, seen = WideTask(), []

    def evaluate(step: int) -> dict[str, float]:
        seen.append(task.head.weight.dtype)
        return {"score": task.head(torch.ones(WIDTH)).item()}

    run(tmp_path, task=task, accumulate=accumulate, evaluate=evaluate, eval_every=2, **BOTH)
    assert set(seen) == {torch.float32} and len(seen) == 2
    bf16 = torch.bfloat16
    assert task.met == ({(bf16, None)} if accumulate == 1 else {(bf16, None), (bf16, torch.float32)})


def test_a_state_is_packed_without_loss() -> None:
    settings = config(**BOTH)
    weight = nn.Parameter(torch.randn(WIDTH, WIDTH).bfloat16())
    optimizer = low_memory_adamw([{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}], settings)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    packed = packed_state(state)
    assert not any(hasattr(tensor, "codes") for tensor in packed.values())
    again = unpacked_state(packed, weight)
    assert again.keys() == state.keys()
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(again[key].dequantize(), state[key].dequantize()) and again[key].dtype == state[key].dtype
        assert state[key].dequantize().any()


def test_another_optimizer_or_type_is_refused_on_resume(tmp_path: Path) -> None:
    run(tmp_path, steps=1)
    for way, now in ((EIGHT, "adamw8bit, fp32"), (HALF, "adamw, bf16")):
        with pytest.raises(UserError, match=f"begun with optimizer and weights adamw, fp32, now they are {now}"):
            run(tmp_path, resume=True, **way)


def test_what_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--master-weights is bf16 and arithmetic fp32: expected --precision bf16"):
        run(tmp_path, master_weights="bf16", precision="fp32")
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    for way, flag in ((EIGHT, "--optimizer adamw8bit"), (HALF, "--master-weights bf16")):
        with pytest.raises(UserError, match=rf"{flag} needs .*graft-multimodal\[quantize\]"):
            run(tmp_path, **way)
    assert not list(tmp_path.iterdir())
