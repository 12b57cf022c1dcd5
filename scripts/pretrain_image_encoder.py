"""Pre-train the image encoder on pictures with captions; the text tower is thrown away.

python -m scripts.pretrain_image_encoder --config scripts/configs/image_encoder.yaml --run-dir runs/encoder
"""

from multimodal.config import parse
from multimodal.errors import run_cli
from vision.contrastive_training import ContrastiveConfig, pretrain_image_encoder


def main() -> None:
    config = parse(ContrastiveConfig, description=__doc__)
    result = pretrain_image_encoder(config)
    print(f"encoder saved in {config.run_dir / 'encoder'} ({result.steps} steps, {result.seconds:.0f} s)")


if __name__ == "__main__":
    run_cli(main)
