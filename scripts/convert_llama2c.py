"""Turn a llama2.c checkpoint (version 0) and its tokenizer into a decoder folder of transformers.

python -m scripts.convert_llama2c --checkpoint stories260K.bin --tokenizer tok512.bin --out runs/stories260K
"""

from dataclasses import dataclass
from pathlib import Path

from multimodal.config import parse
from multimodal.errors import run_cli
from multimodal.llama2c import convert


@dataclass(frozen=True, kw_only=True)
class Config:
    """A llama2.c decoder for `--decoder`."""

    checkpoint: Path
    """The weights, as llama2.c's export.py writes them in version 0."""
    tokenizer: Path
    """The tokenizer, as its tokenizer.py writes it."""
    out: Path
    """New folder for the decoder."""


def main() -> None:
    config = parse(Config, description=__doc__)
    lm = convert(config.checkpoint, config.tokenizer, config.out)
    print(f"decoder with {lm.num_parameters():,} parameters saved in {config.out}")


if __name__ == "__main__":
    run_cli(main)
