"""A run ends with the weights of its best evaluation, also after a kill."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multimodal.errors import UserError
from multimodal.train.config import StageConfig
from tests.multimodal.train.test_loop import ToyTask, checkpoints, config, run

SCORES = {5: 0.2, 10: 0.7, 15: 0.7, 20: 0.4}


def state(task: ToyTask) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def scored(task: ToyTask, seen: dict[int, dict[str, Tensor]], step: int) -> dict[str, float]:
    seen[step] = state(task)
    return {"score": SCORES[step], "error": SCORES[step]}


@pytest.mark.parametrize(("number", "best"), [("score", 10), ("-error", 5)])
def test_the_run_ends_with_the_weights_of_the_best_evaluation(tmp_path: Path, number: str, best: int) -> None:
    task, seen = ToyTask(), {}
    _, result = run(tmp_path, task=task, evaluate=lambda step: scored(task, seen, step), eval_every=5, keep_best=number)
    assert same(state(task), seen[best]) and not same(seen[best], seen[20])
    assert result.metrics == {"score": SCORES[best], "error": SCORES[best], "best_step": best}
    assert result.steps == 20 and checkpoints(tmp_path)[-1] == "step-00000020"  # the run itself went on from there
    assert [folder.name for folder in (tmp_path / "best").iterdir()] == [f"step-{best:08d}"]


def test_without_it_the_run_ends_with_its_last_weights(tmp_path: Path) -> None:
    task, seen = ToyTask(), {}
    _, result = run(tmp_path, task=task, evaluate=lambda step: scored(task, seen, step), eval_every=5)
    assert same(state(task), seen[20]) and result.metrics["score"] == SCORES[20]
    assert not (tmp_path / "best").exists()


@pytest.mark.parametrize(("before", "best"), [(0.9, 0), (0.5, 10)])
def test_weights_that_are_of_use_already_are_kept_if_nothing_is_better(
    tmp_path: Path, before: float, best: int
) -> None:
    task, seen = ToyTask(), {}
    start = state(task)
    options: dict[str, Any] = {"eval_every": 5, "keep_best": "score", "start_counts": True}

    def evaluate(step: int) -> dict[str, float]:
        seen[step] = state(task)
        assert not task.training
        return {"score": SCORES.get(step, before)}

    _, result = run(tmp_path, task=task, evaluate=evaluate, **options)
    assert same(seen[0], start) and result.metrics["best_step"] == best and result.steps == 20
    assert same(state(task), seen[best]) and not same(seen[0], seen[10])
    plain, _ = run(tmp_path / "plain", evaluate=lambda step: {"score": step}, eval_every=5, keep_best="score")
    assert same(state(plain), seen[20])  # a look at the start disturbs nothing
    run(tmp_path, task=task, evaluate=lambda step: pytest.fail("evaluated again"), resume=True, **options)


def test_what_was_best_before_a_kill_is_best_afterwards(tmp_path: Path) -> None:
    task, seen = ToyTask(), {}
    task.interrupt_at = 18
    options = {"eval_every": 5, "keep_best": "score"}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, task=task, evaluate=lambda step: scored(task, seen, step), **options)
    again = ToyTask()
    _, result = run(tmp_path, task=again, evaluate=lambda step: scored(again, {}, step), resume=True, **options)
    assert same(state(again), seen[10]) and result.metrics["best_step"] == 10


@pytest.mark.parametrize(("before", "now", "best"), [({10: 0.5}, 0.9, 10), ({15: 0.5}, 0.9, 10), ({15: 0.9}, 0.5, 15)])
def test_a_run_that_goes_on_otherwise_than_before_the_kill_keeps_the_best_of_both(
    tmp_path: Path, before: dict[int, float], now: float, best: int
) -> None:
    """As where a clock ends the run: the steps after the last checkpoint are other ones the second time."""
    task, seen = ToyTask(), {}
    task.interrupt_at = 16
    options: dict[str, Any] = {"eval_every": 5, "keep_best": "score", "save_every": 8}

    def evaluate(task: ToyTask, scores: dict[int, float], step: int) -> dict[str, float]:
        seen[step] = state(task)
        return {"score": scores.get(step, 0.0)}

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, task=task, evaluate=lambda step: evaluate(task, before, step), **options)
    expected = seen[best]
    again = ToyTask()
    _, result = run(
        tmp_path, task=again, evaluate=lambda step: evaluate(again, {10: now}, step), resume=True, **options
    )
    assert result.metrics["best_step"] == best and result.metrics["score"] == max(now, *before.values())
    assert same(state(again), seen[best] if best == 10 else expected)
    assert [folder.name for folder in (tmp_path / "best").iterdir()] == [f"step-{best:08d}"]


def test_a_new_run_forgets_what_was_best_before(tmp_path: Path) -> None:
    run(tmp_path, evaluate=lambda step: {"score": 9.0}, eval_every=0, keep_best="score", steps=5, save_every=0)
    for folder in (tmp_path / "checkpoints").iterdir():
        folder.rename(tmp_path / "elsewhere")
    task, seen = ToyTask(), {}
    run(tmp_path, task=task, evaluate=lambda step: scored(task, seen, step), eval_every=5, keep_best="score")
    assert same(state(task), seen[10])


def test_a_number_that_is_not_evaluated_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="keep-best wer: the evaluation has no such number; expected one of score"):
        run(tmp_path / "a", evaluate=lambda step: {"score": 1.0}, keep_best="wer")
    with pytest.raises(UserError, match="keep-best wer: nothing is evaluated here"):
        run(tmp_path / "b", keep_best="wer")


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_unreadable_weights_are_named(tmp_path: Path, name: str) -> None:
    run(tmp_path, evaluate=lambda step: {"score": 1.0}, keep_best="score")
    (tmp_path / "best" / "step-00000020" / name).write_text("{")
    with pytest.raises(UserError, match="best/step-00000020: unreadable"):
        run(tmp_path, evaluate=lambda step: {"score": 1.0}, keep_best="score", resume=True)


def test_a_stage_keeps_the_best_by_its_own_number_or_not_at_all() -> None:
    main = config(keep_best="-wer")
    assert StageConfig(steps=3).settings(main, rates={}).keep_best == ""
    assert StageConfig(steps=3, keep_best="-ctc_wer").settings(main, rates={}).keep_best == "-ctc_wer"
