"""Measure Graft side by side with what people would use instead, on the same shapes and weights.

python -m scripts.benchmark --suite all                     two CPU cores, about ten minutes
python -m scripts.benchmark --suite image --size 8b --device cuda
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from multimodal.config import parse
from multimodal.errors import UserError, run_cli
from multimodal.train.precision import resolve_device, resolve_precision
from scripts.benchmarks.case import Compiled, Settings
from scripts.benchmarks.page import show, write
from scripts.benchmarks.plain import tricks_to_remove
from scripts.benchmarks.run import run_suite
from scripts.benchmarks.sizes import SIZES
from scripts.benchmarks.suites import SUITES


@dataclass(frozen=True, kw_only=True)
class Config:
    """Which rows are measured, and where."""

    suite: Literal["image", "video", "speech", "generate", "all"] = "all"
    size: Literal["cpu", "8b", "tiny"] = "cpu"
    """Shapes: for two CPU cores, for a GPU with a frozen decoder of 8B, or for a test of the benchmark itself."""
    device: str = "cpu"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    without: tuple[str, ...] = ()
    """Tricks to take away, each for itself; by default every one, and all together."""
    only: str = ""
    """Rows whose name holds this."""
    repeats: int = 5
    """Pairs of timings of a row at most."""
    seconds: float = 12.0
    """For the pairs of a row, of which three are timed in any case."""
    memory: bool = True
    """Measure peaks, each side in a process of its own."""
    seed: int = 0
    compile: Compiled = "nobody"
    """Whose layers are compiled in the rows of captioning's train steps, as --train.compile does. Peaks are then left
    out: what the compiler takes would be in them."""
    run_dir: Path = Path("runs/benchmark")
    """Gets a JSON file for each suite, plots, and `report.html`."""

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.seconds <= 0:
            raise UserError(f"--repeats {self.repeats}, --seconds {self.seconds}: expected 1 or more, more than 0")


def main() -> None:
    config = parse(Config, description=__doc__)
    began = time.perf_counter()
    tricks_to_remove(config.without)
    device = resolve_device(config.device)
    settings = Settings(
        size=SIZES[config.size],
        device=str(device),
        precision=resolve_precision(config.precision, device),
        without=config.without,
        repeats=config.repeats,
        seconds=config.seconds,
        memory=config.memory and config.compile == "nobody",
        seed=config.seed,
        compile=config.compile,
    )
    names = tuple(SUITES) if config.suite == "all" else (config.suite,)
    results = [run_suite(name, settings, only=config.only) for name in names]
    show(results, Console(width=None if sys.stdout.isatty() else 160))
    print(f"report: {write(results, settings, config.run_dir, began=began)}")
    if not all(row.agrees for result in results for row in result.rows):
        print("error: sides that disagree were not timed", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
