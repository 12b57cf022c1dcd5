"""Train a video adapter for question answering on an image model with a frozen decoder.

python -m scripts.train_video_qa --config scripts/configs/video_qa.yaml --data.source FOLDER --run-dir runs/mine
"""

from multimodal.config import parse
from multimodal.errors import run_cli
from multimodal.report import write_json
from vision.video_training import VideoQAConfig, train_video_qa


def main() -> None:
    config = parse(VideoQAConfig, description=__doc__)
    _, result = train_video_qa(config)
    write_json(config.run_dir / "metrics.json", result.metrics)


if __name__ == "__main__":
    run_cli(main)
