"""Train the speech encoder before any decoder: BEST-RQ on sound alone, or CTC on transcripts.

python -m scripts.pretrain_speech_encoder --config scripts/configs/speech_encoder.yaml --untranscribed \\
    --data.source FOLDER --run-dir runs/speech_encoder
python -m scripts.pretrain_speech_encoder --config scripts/configs/speech_ctc.yaml \\
    --data.source FOLDER --weights runs/speech_encoder/encoder --fresh-layers 2 --run-dir runs/ctc
"""

from multimodal.config import parse
from multimodal.errors import run_cli
from multimodal.report import write_json
from scripts.spoken_texts import ALL_WRITERS
from speech.encoder_training import SpeechEncoderConfig, pretrain_speech_encoder


def main() -> None:
    config = parse(SpeechEncoderConfig, description=__doc__)
    result = pretrain_speech_encoder(config, writers=ALL_WRITERS)
    write_json(config.run_dir / "metrics.json", result.metrics | {"train_seconds": result.seconds})
    print(f"encoder saved in {config.run_dir / 'encoder'} ({result.steps} steps, {result.seconds:.0f} s)")


if __name__ == "__main__":
    run_cli(main)
