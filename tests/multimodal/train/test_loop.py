"""The promises of the training loop: exact resume, token-weighted gradients, nothing lost on any failure.

As a script (`python test_loop.py RUN_DIR`) it trains the toy task and kills itself; a test starts it so.
"""

import errno
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multimodal.data.order import SeededOrder
from multimodal.errors import UserError
from multimodal.train import TrainConfig, TrainResult, seed_everything, train
from multimodal.train import checkpoint as checkpoint_module

BROKEN = 5


class ToyData:
    """Rows of 1 to 4 numbers with noise from the sample's own generator; one sample is broken."""

    def __len__(self) -> int:
        return 37

    def sample(self, index: int, rng: random.Random) -> Tensor | None:
        return None if index == BROKEN else torch.full((1 + index % 4,), index / 37) + 0.1 * rng.random()


class ToyTask(nn.Module):
    """Two linear layers with dropout, which draws from the global generator; every instance begins equal."""

    def __init__(self) -> None:
        super().__init__()
        seed_everything(0)
        self.encoder = nn.Linear(4, 8)
        self.adapter = nn.Linear(8, 1)
        self.table = nn.Embedding(4, 4)
        self.dropout = nn.Dropout(0.1)
        self.calls = 0
        self.poison: float | None = None
        self.interrupt_at: int | None = None

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        names = ("encoder", "adapter", "table")
        return {name: list(getattr(self, name).named_parameters()) for name in names}

    def loss(self, batch: list[Tensor]) -> tuple[Tensor, int]:
        self.calls += 1
        if self.calls == self.interrupt_at:
            raise KeyboardInterrupt
        x = torch.cat(batch)
        features = self.table((x * 37).long() % 4) * x[:, None]
        out = self.adapter(self.dropout(torch.relu(self.encoder(features))))[:, 0]
        loss = ((out - x) ** 2).sum()
        return (loss * self.poison if self.poison is not None else loss), x.numel()


def config(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "steps": 20,
        "batch_size": 8,
        "learning_rates": {"encoder": 1e-2, "adapter": 2e-2, "table": 0},
        "save_every": 5,
        "tensorboard": False,
    }
    return TrainConfig(**(defaults | changes))


def run(run_dir: Path, *, task: ToyTask | None = None, data: Any = None, **options: Any) -> tuple[ToyTask, TrainResult]:
    """Train the toy task; options of `train` are split from those of the config."""
    of_train = {key: options.pop(key) for key in ("resume", "evaluate", "start_counts") if key in options}
    task = task or ToyTask()
    settings = config(**options)
    result = train(task=task, dataset=data or ToyData(), collate=list, config=settings, run_dir=run_dir, **of_train)
    return task, result


def checkpoints(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def final_tensors(run_dir: Path, step: int = 20) -> dict[str, Tensor]:
    """Weights, optimizer moments and generators at a step."""
    return load_file(run_dir / "checkpoints" / f"step-{step:08d}" / "tensors.safetensors")


def assert_identical(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def log_lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 20 steps."""
    run_dir = tmp_path_factory.mktemp("whole")
    run(run_dir)
    return run_dir


@pytest.mark.parametrize("workers", [0, 2])
def test_k_steps_and_k_more_equal_2k_steps(tmp_path: Path, whole: Path, workers: int) -> None:
    interrupted = ToyTask()
    interrupted.interrupt_at = 13  # after the checkpoint of step 10
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, task=interrupted, workers=workers)
    assert checkpoints(tmp_path)[-1] == "step-00000010"
    task, result = run(tmp_path, resume=True, workers=workers)
    expected = final_tensors(whole)
    assert any(name.startswith("optimizer/") for name in expected) and "rng/torch" in expected
    assert_identical(final_tensors(tmp_path), expected)
    assert torch.equal(task.adapter.weight, expected["model/adapter/weight"])
    assert result.steps == 20
    before, after = log_lines(whole), log_lines(tmp_path)
    assert [line["step"] for line in after] == list(range(1, 21))
    assert [line["loss"] for line in after] == [line["loss"] for line in before]


@pytest.mark.parametrize("where", ["in a step", "in a checkpoint"])
def test_kill_9_then_resume_gives_the_same_weights(tmp_path: Path, whole: Path, where: str) -> None:
    dead = subprocess.run([sys.executable, __file__, str(tmp_path), where], capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    left = checkpoints(tmp_path)
    assert "step-00000010" not in left if where == "in a checkpoint" else "step-00000010" in left
    assert any(name.startswith("tmp-") for name in left) == (where == "in a checkpoint")
    run(tmp_path, resume=True)
    assert_identical(final_tensors(tmp_path), final_tensors(whole))
    assert checkpoints(tmp_path) == ["step-00000015", "step-00000020"]


def test_accumulation_is_weighted_by_tokens(tmp_path: Path) -> None:
    plain, split = ToyTask(), ToyTask()
    for task, accumulate in ((plain, 1), (split, 4)):
        task.dropout.p = 0.0
        options = {"steps": 5, "schedule": "constant", "warmup": 0, "clip_norm": 0, "precision": "fp32"}
        run(tmp_path / str(accumulate), task=task, accumulate=accumulate, **options)
    assert split.calls == 4 * plain.calls
    for one, four in zip(plain.parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(one, four, atol=1e-6, rtol=0)


def test_the_gradient_is_that_of_the_mean_over_tokens(tmp_path: Path) -> None:
    task = ToyTask()
    task.dropout.p = 0.0
    rates = dict.fromkeys(task.parts(), 1e-30)
    run(tmp_path, task=task, steps=1, accumulate=2, clip_norm=0, learning_rates=rates, precision="fp32")
    gradient = task.adapter.weight.grad
    assert gradient is not None
    from multimodal.data.order import sample_rng

    pairs = SeededOrder(length=37, batch_size=8, seed=0)(0)
    drawn = [ToyData().sample(index, sample_rng(0, epoch, index)) for epoch, index in pairs]
    loss, weight = task.loss([row for row in drawn if row is not None])
    (expected,) = torch.autograd.grad(loss / weight, [task.adapter.weight])
    torch.testing.assert_close(gradient, expected)


def test_another_order_is_refused_on_resume(tmp_path: Path) -> None:
    def go_on(*, shuffle: bool, resume: bool) -> TrainResult:
        order = SeededOrder(length=37, batch_size=8, seed=0, shuffle=shuffle)
        settings = config(steps=5)
        return train(
            task=ToyTask(),
            dataset=ToyData(),
            collate=list,
            config=settings,
            run_dir=tmp_path,
            resume=resume,
            order=order,
        )

    go_on(shuffle=False, resume=False)
    assert go_on(shuffle=False, resume=True).steps == 5
    with pytest.raises(UserError, match="was begun with in_order 1, now it is 0"):
        go_on(shuffle=True, resume=True)


def test_a_rate_of_zero_freezes(tmp_path: Path) -> None:
    before = ToyTask().state_dict()
    task, _ = run(tmp_path, steps=5, learning_rates={"encoder": 0, "adapter": 1e-2, "table": 0})
    assert torch.equal(task.encoder.weight, before["encoder.weight"])
    assert not torch.equal(task.adapter.weight, before["adapter.weight"])
    assert not any(p.requires_grad or p.grad is not None for p in (*task.encoder.parameters(), task.table.weight))
    saved = {name.split("/")[1] for name in final_tensors(tmp_path, 5) if not name.startswith("rng/")}
    assert saved == {"adapter"}


def test_a_used_folder_is_refused_without_resume(tmp_path: Path, whole: Path) -> None:
    before = checkpoints(whole)
    with pytest.raises(UserError, match=r"already holds checkpoints.*--resume"):
        run(whole)
    assert checkpoints(whole) == before


def test_resume_starts_anew_where_nothing_is(tmp_path: Path, whole: Path) -> None:
    run(tmp_path, resume=True)
    assert_identical(final_tensors(tmp_path), final_tensors(whole))


def test_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    _, first = run(tmp_path, steps=5, evaluate=lambda step: {"score": 0.5})
    task, again = run(tmp_path, steps=5, resume=True, evaluate=lambda step: {"score": 0.0})
    assert (again.steps, again.metrics, again.skipped) == (5, {"score": 0.5}, first.skipped)
    assert task.calls == 0
    assert torch.equal(task.adapter.weight, final_tensors(tmp_path, 5)["model/adapter/weight"])


def test_resume_refuses_another_order_of_samples(tmp_path: Path) -> None:
    run(tmp_path, steps=5)
    with pytest.raises(UserError, match="batch_size 8, now it is 4"):
        run(tmp_path, batch_size=4, resume=True)


def test_broken_samples_are_counted(tmp_path: Path) -> None:
    _, result = run(tmp_path)  # 160 draws of 37 samples
    assert result.skipped == log_lines(tmp_path)[-1]["skipped"]
    assert result.skipped in (4, 5)


def test_a_data_set_of_broken_samples_is_an_error(tmp_path: Path) -> None:
    class Broken(ToyData):
        def sample(self, index: int, rng: random.Random) -> Tensor | None:
            return None

    with pytest.raises(UserError, match="all 37 samples of the data set are broken"):
        run(tmp_path, data=Broken())


class HalfTaught(ToyTask):
    """Every second batch teaches nothing, as text alone does to an adapter."""

    def loss(self, batch: list[Tensor]) -> tuple[Tensor, int]:
        loss, weight = super().loss(batch)
        return (loss.detach() if self.calls % 2 else loss), weight


def test_a_batch_that_teaches_nothing_is_counted_and_moves_nothing(tmp_path: Path) -> None:
    task, before = HalfTaught(), ToyTask()
    _, result = run(tmp_path, task=task, steps=1)
    assert result.steps == 1 and log_lines(tmp_path)[0]["grad_norm"] == 0.0
    assert all(torch.equal(a, b) for a, b in zip(task.parameters(), before.parameters(), strict=True))
    run(tmp_path / "both", task=task, steps=1, accumulate=2)
    assert not all(torch.equal(a, b) for a, b in zip(task.parameters(), before.parameters(), strict=True))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    run(tmp_path, steps=5)
    task = ToyTask()
    task.poison = float("nan")
    with pytest.raises(UserError, match=r"^step 6: loss nan"):
        run(tmp_path, task=task, resume=True)
    assert checkpoints(tmp_path) == ["step-00000005"]
    assert torch.isfinite(task.adapter.weight).all()


def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file = checkpoint_module.save_file

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        if "step-00000010" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint_module, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write checkpoint .*step-00000010: No space left on device") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert checkpoints(tmp_path) == ["step-00000005"]
    monkeypatch.undo()
    run(tmp_path, resume=True)
    assert_identical(final_tensors(tmp_path), final_tensors(whole))


def test_evaluation_sees_eval_mode_and_leaves_no_trace(tmp_path: Path, whole: Path) -> None:
    task, seen = ToyTask(), []

    def evaluate(step: int) -> dict[str, float]:
        seen.append((step, task.training, torch.is_grad_enabled()))
        random.random()
        return {"score": float(torch.rand(()))}

    _, result = run(tmp_path, task=task, evaluate=evaluate, eval_every=8)
    assert seen == [(step, False, False) for step in (8, 16, 20)]
    assert task.training
    lines = [line for line in log_lines(tmp_path) if "evaluation" in line]
    assert [line["step"] for line in lines] == [8, 16, 20]
    assert result.metrics == lines[-1]["evaluation"]
    assert_identical(final_tensors(tmp_path), final_tensors(whole))


def test_a_wall_clock_budget_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    _, result = run(tmp_path, max_minutes=1e-9)
    assert result.steps == 1
    assert checkpoints(tmp_path) == ["step-00000001"]


def test_the_run_folder_tells_what_ran(whole: Path) -> None:
    keys = {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "samples_per_second"}
    assert keys | {"memory_mb", "skipped", "wait_share"} == log_lines(whole)[0].keys()
    assert log_lines(whole)[-1]["learning_rate"].keys() == {"encoder", "adapter"}
    assert "batch_size: 8" in (whole / "config.yaml").read_text()
    assert json.loads((whole / "run.json").read_text()).keys() >= {"git_revision", "precision", "device", "torch"}


def test_training_learns(whole: Path) -> None:
    losses = [line["loss"] for line in log_lines(whole)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def _main(run_dir: Path, where: str) -> None:
    """Train the toy task and die by SIGKILL, in the middle of a step or before a checkpoint gets its name."""
    task = ToyTask()
    replace, loss = os.replace, task.loss

    def die(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "in a checkpoint":
        os.replace = lambda a, b: die() if "step-00000010" in str(b) else replace(a, b)
    else:
        task.loss = lambda batch: die() if task.calls == 12 else loss(batch)
    run(run_dir, task=task)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])


def test_a_refused_evaluation_costs_no_steps(tmp_path: Path) -> None:
    def refuse(step: int) -> dict[str, float]:
        raise UserError("nothing to shuffle")

    with pytest.raises(UserError, match="nothing to shuffle"):
        run(tmp_path, steps=9, save_every=0, eval_every=7, evaluate=refuse)
    assert checkpoints(tmp_path) == ["step-00000007"]
    run(tmp_path / "whole", steps=9, save_every=0)
    _, rest = run(tmp_path, steps=9, save_every=0, resume=True)
    assert rest.steps == 9
    assert_identical(final_tensors(tmp_path, 9), final_tensors(tmp_path / "whole", 9))
