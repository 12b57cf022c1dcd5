"""Llama 3.2 Vision into a decoder folder with an image adapter, and back.

python -m scripts.convert_mllama --to-graft Llama-3.2-11B-Vision-Instruct --output runs/llama32
python -m scripts.convert_mllama --from-graft runs/mine/adapter --output my-llama-vision
"""

from dataclasses import dataclass
from pathlib import Path

from multimodal.config import parse
from multimodal.errors import UserError, run_cli
from vision.mllama import join_mllama, split_mllama
from vision.tile_layout import Numerics


@dataclass(frozen=True, kw_only=True)
class Config:
    """Convert Llama 3.2 Vision."""

    output: Path
    """New folder."""
    to_graft: Path | None = None
    """Llama 3.2 Vision folder; the output gets `decoder` and `adapter`."""
    from_graft: Path | None = None
    """Adapter, a folder or one of the hub; the output is what `transformers` loads."""
    numerics: Numerics = "reference"
    """Of --to-graft. reference: what the weights were trained with; strict: nothing sees padding."""


def main() -> None:
    config = parse(Config, description=__doc__)
    if (config.to_graft is None) == (config.from_graft is None):
        raise UserError("--to-graft and --from-graft: expected one of them")
    if config.to_graft is not None:
        split_mllama(config.to_graft, config.output, numerics=config.numerics)
        print(f"saved {config.output / 'decoder'} and {config.output / 'adapter'}")
    elif config.from_graft is not None:
        join_mllama(config.from_graft, config.output)
        print(f"saved {config.output}")


if __name__ == "__main__":
    run_cli(main)
