"""Where a run reports: one JSON line per step in `log.jsonl`, TensorBoard, W&B, and the terminal."""

import json
import os
import resource
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from multimodal.errors import UserError
from multimodal.train.config import TrainConfig
from multimodal.train.event_file import EventFile


class RunLog:
    """The reports of one run; a context manager. On resume, lines after `first_step` are dropped: no step twice."""

    def __init__(self, run_dir: Path, config: TrainConfig, *, first_step: int) -> None:
        self._config = config
        self._stack = ExitStack()
        run_dir.mkdir(parents=True, exist_ok=True)
        self._wandb = self._start_wandb(run_dir, config)
        self._path = run_dir / "log.jsonl"
        keep_lines_up_to(self._path, first_step)
        self._file = self._stack.enter_context(self._path.open("ab", buffering=0))
        self._events: EventFile | None = None
        if config.tensorboard:
            self._events = self._stack.enter_context(
                closing(EventFile(run_dir / "tensorboard", first_step=first_step + 1))
            )
        self._bar = self._start_bar(first_step) if sys.stderr.isatty() else None

    def _start_wandb(self, run_dir: Path, config: TrainConfig) -> Any:
        if config.wandb is None:
            return None
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError as error:
            raise UserError(
                "--wandb needs the package wandb: expected it to be installed (pip install wandb)"
            ) from error
        run = wandb.init(project=config.wandb, dir=str(run_dir), id=run_dir.name, resume="allow")
        self._stack.callback(run.finish)
        return run

    def _start_bar(self, first_step: int) -> Progress:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        bar = self._stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        self._bar_task = bar.add_task("starting", total=self._config.steps, completed=first_step)
        return bar

    def step(self, record: dict[str, Any]) -> None:
        """Report a training step; `record` has the keys of a line of the log."""
        step = record["step"]
        scalars = {f"train/{key}": value for key, value in _flat(record).items() if key != "step"}
        self._write(record, scalars)
        loss = "-" if record["loss"] is None else f"{record['loss']:.4f}"
        text = (
            f"loss {loss}  {record['tokens_per_second']:,.0f} tokens/s  "
            f"{record['samples_per_second']:,.1f} samples/s  {record['memory_mb']:,.0f} MB"
        )
        if self._bar is not None:
            self._bar.update(self._bar_task, completed=step, description=text)
        elif step % self._config.log_every == 0 or step == self._config.steps:
            self._line(f"step {step}/{self._config.steps}  {text}")

    def evaluation(self, step: int, metrics: dict[str, float]) -> None:
        """Report an evaluation after `step`."""
        scalars = {f"evaluation/{key}": value for key, value in metrics.items()}
        self._write({"step": step, "evaluation": metrics}, scalars)
        self._line(f"step {step}  " + "  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))

    def _write(self, record: dict[str, Any], scalars: dict[str, float]) -> None:
        try:
            self._file.write((json.dumps(record) + "\n").encode())
            if self._events is not None:
                self._events.scalars(scalars, record["step"])
        except OSError as error:
            reason = f"{error.strerror}: expected a writable disk with room"
            raise UserError(f"cannot write to {self._path.parent}: {reason}; the last checkpoint is intact") from error
        if self._wandb is not None:
            self._wandb.log(scalars, step=record["step"])

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def keep_lines_up_to(path: Path, step: int) -> None:
    """Drop the lines of a log whose step is after `step`, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    os.replace(temporary, path)


def write_description(run_dir: Path, *, config_yaml: str, precision: str, device: torch.device) -> None:
    """Write the resolved configuration to `config.yaml`, and what ran it to `run.json`."""
    (run_dir / "config.yaml").write_text(config_yaml)
    facts = {"git_revision": git_revision(), "torch": torch.__version__, "precision": precision, "device": str(device)}
    (run_dir / "run.json").write_text(json.dumps(facts, indent=2) + "\n")


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        elif value is not None:
            flat[prefix + key] = value
    return flat


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in MB (10^6 bytes): of the GPU if the run is on one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def git_revision() -> str | None:
    """Commit of this source tree, with "+changes" if it has any; None outside a git clone."""
    here = Path(__file__).parent
    try:
        commands = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        head, changes = (
            subprocess.run(["git", *c], cwd=here, capture_output=True, text=True, check=True).stdout for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+changes" if changes.strip() else "")
