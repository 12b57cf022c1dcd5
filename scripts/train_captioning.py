"""Train an image adapter for captioning on a frozen decoder.

python -m scripts.train_captioning --config scripts/configs/captioning.yaml --data.source FOLDER --run-dir runs/mine
"""

from multimodal.config import parse
from multimodal.errors import run_cli
from vision.caption_training import CaptioningConfig, train_captioning


def main() -> None:
    train_captioning(parse(CaptioningConfig, description=__doc__))


if __name__ == "__main__":
    run_cli(main)
