"""Train speech recognition, translation and dialogue on a frozen decoder.

python -m scripts.train_asr --config scripts/configs/grid_speech.yaml --data.source FOLDER --run-dir runs/grid
"""

from multimodal.config import parse
from multimodal.errors import run_cli
from multimodal.report import write_json
from scripts.spoken_texts import ALL_WRITERS
from speech.asr_training import AsrConfig, train_asr


def main() -> None:
    config = parse(AsrConfig, description=__doc__)
    _, result = train_asr(config, writers=ALL_WRITERS)
    for name, scores in result.scores.items():
        print(f"{name or 'test'}: {scores.evaluation}".replace("\n", f"\n{name or 'test'}: "))
    trained = result.trained
    facts = {"train_seconds": trained.seconds, "steps": trained.steps, "peak_memory_mb": trained.peak_memory_mb}
    write_json(config.run_dir / "metrics.json", trained.metrics | result.metrics() | facts)


if __name__ == "__main__":
    run_cli(main)
