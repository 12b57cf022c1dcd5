"""Linear probes of an image encoder: does it know colours and shapes, also in pairs that it never saw?

python -m scripts.probe_image_encoder --encoder runs/image_encoder/encoder --run-dir runs/probe
"""

from dataclasses import dataclass
from pathlib import Path

from multimodal.config import parse
from multimodal.errors import run_cli
from multimodal.report import write_json
from vision.attribute_probe import probe_encoder
from vision.encoder_folder import read_encoder


@dataclass(frozen=True, kw_only=True)
class Config:
    """Probe an image encoder on built-in scenes."""

    run_dir: Path
    """Gets `metrics.json`."""
    encoder: Path = Path("builtin")
    """Folder written by pretrain_image_encoder, or "builtin"."""
    count: int = 1200
    """Scenes that a probe learns from."""
    seed: int = 0


def main() -> None:
    config = parse(Config, description=__doc__)
    scores = probe_encoder(read_encoder(config.encoder), count=config.count, seed=config.seed)
    write_json(config.run_dir / "metrics.json", scores)
    print("  ".join(f"{name} {value:.3f}" for name, value in scores.items()))


if __name__ == "__main__":
    run_cli(main)
