"""Running a script's `main` in the test's own process."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from multimodal.errors import run_cli


@dataclass(frozen=True)
class Ended:
    """How a script ended: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`cli("caption", "dog.png", "--adapter", folder)` runs that script."""

    def run(script: str, *args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        capsys.readouterr()
        status = 0
        try:
            run_cli(importlib.import_module(f"scripts.{script}").main)
        except SystemExit as stop:
            status = int(stop.code or 0)
        return Ended(status, *capsys.readouterr())

    return run
