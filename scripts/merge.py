"""Average adapters of runs that began with the same weights.

python -m scripts.merge runs/a/adapter runs/b/adapter runs/c/adapter --weights 2 1 1 --output runs/merged/adapter
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from multimodal.adapter_merge import merge_adapters
from multimodal.config import parse
from multimodal.errors import run_cli


@dataclass(frozen=True, kw_only=True)
class Config:
    """Average adapters."""

    adapters: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Adapter folders, or names of adapters on the hub: two or more."""
    output: Path
    """Adapter folder to write."""
    weights: tuple[float, ...] = ()
    """One for each adapter, in any unit: 3 1 are three quarters and one. By default all weigh the same."""
    any_start: bool = False
    """Average runs that began with different weights, too."""


def main() -> None:
    config = parse(Config, description=__doc__)
    merge_adapters(config.adapters, config.output, weights=config.weights, any_start=config.any_start)
    print(f"adapter saved in {config.output}")


if __name__ == "__main__":
    run_cli(main)
