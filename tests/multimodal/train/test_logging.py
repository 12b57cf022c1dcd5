"""The log file has every step once; the terminal gets lines or a bar."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from multimodal.errors import UserError
from multimodal.train import TrainConfig
from multimodal.train.logging import RunLog, git_revision, keep_lines_up_to


def config(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {"steps": 6, "batch_size": 1, "learning_rates": {}, "log_every": 3, "tensorboard": False}
    return TrainConfig(**(defaults | changes))


def record(step: int, loss: float | None = 0.5) -> dict[str, Any]:
    speeds = {"tokens_per_second": 1234.5, "samples_per_second": 6.7, "memory_mb": 89.0}
    return {"step": step, "loss": loss, "learning_rate": {"gates": 0.1}, **speeds}


def report(run_dir: Path, settings: TrainConfig, *, first: int = 0, last: int = 6) -> None:
    with RunLog(run_dir, settings, first_step=first) as log:
        for step in range(first + 1, last + 1):
            log.step(record(step))
        log.evaluation(last, {"score": 0.25})


def test_every_step_is_in_the_file_and_some_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(tmp_path, config())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [record(step) for step in range(1, 7)] + [{"step": 6, "evaluation": {"score": 0.25}}]
    printed = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in printed] == ["3/6", "6/6", "6"]
    assert "loss 0.5000  1,234 tokens/s  6.7 samples/s  89 MB" in printed[0]


def test_lines_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    report(tmp_path, config(), last=5)
    report(tmp_path, config(), first=3)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 6]


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    keep_lines_up_to(path, 5)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_step_without_samples_has_no_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, config(log_every=1, tensorboard=True), first_step=0) as log:
        log.step(record(1, loss=None))
    assert json.loads((tmp_path / "log.jsonl").read_text())["loss"] is None
    assert "loss -" in capsys.readouterr().err


def test_tensorboard_has_the_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report(tmp_path, config(tensorboard=True))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/learning_rate/gates", "evaluation/score"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 7))


def test_a_terminal_gets_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    report(tmp_path, config())
    shown = capsys.readouterr().err
    assert "6/6" in shown and "1,234 tokens/s" in shown and "score 0.2500" in shown


def test_wandb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--wandb needs the package wandb"):
        RunLog(tmp_path, config(wandb="project"), first_step=0)


def test_git_revision_is_a_commit_or_nothing() -> None:
    revision = git_revision()
    assert revision is None or len(revision.split("+")[0]) == 40
