"""Pre-train an image encoder on filmed lips with frame-level word labels; the head is thrown away.

python -m scripts.pretrain_lip_encoder --config scripts/configs/grid_lip_encoder.yaml --source GRID --run-dir runs/lips
"""

from multimodal.config import parse
from multimodal.errors import run_cli
from vision.lip_training import LipReadingConfig, pretrain_lip_encoder


def main() -> None:
    config = parse(LipReadingConfig, description=__doc__)
    result = pretrain_lip_encoder(config)
    print(f"encoder saved in {config.run_dir / 'encoder'} ({result.steps} steps, {result.seconds:.0f} s)")


if __name__ == "__main__":
    run_cli(main)
