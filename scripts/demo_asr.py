"""Speech recognition on built-in sentences: train, transcribe unseen sentences of unseen voices, write a report.

make demo-asr        (python -m scripts.demo_asr --config scripts/configs/demo_asr.yaml)
"""

import random
import time
from dataclasses import dataclass

from multimodal.chart import Chart, curve_from_log
from multimodal.config import parse
from multimodal.errors import run_cli
from multimodal.report import RunFacts, write_json, write_report
from multimodal.text_proof import decoder_proof
from multimodal.train.logging import peak_memory_mb
from scripts.spoken_texts import ALL_WRITERS
from speech.asr_report import asr_report, speech_cards
from speech.asr_training import AsrConfig, train_asr

GOALS = {"wer": 0.1, "translation_exact": 0.9}


@dataclass(frozen=True, kw_only=True)
class Config(AsrConfig):
    """Training on built-in sentences and a report."""

    cards: int = 24
    """Utterances shown in the report, chosen by the seed."""


def main() -> None:
    config = parse(Config, description=__doc__)
    started = time.perf_counter()
    model, result = train_asr(config, writers=ALL_WRITERS)
    proof, memory = decoder_proof(model), peak_memory_mb(model.device)
    for name, scores in result.scores.items():
        print(f"{name or 'test'}\n{scores.evaluation}")
    main_set = result.scores[""]
    count = len(main_set.evaluation.samples)
    shown = random.Random(config.train.seed).sample(range(count), min(config.cards, count))
    stages = [
        stage for stage in ("ctc", "align", "adapter_only", "joint") if (config.run_dir / stage / "log.jsonl").exists()
    ]
    report = asr_report(
        scores=result.scores,
        cards=speech_cards(model, main_set, shown),
        cards_note=f"{len(shown)} of {count} held-out utterances, chosen by seed {config.train.seed}",
        run=RunFacts(
            title="Speech recognition: unseen sentences in unseen voices",
            subtitle="A speech encoder and adapter trained on built-in sentences; the decoder behind them is frozen.",
            seed=config.train.seed,
            seconds=time.perf_counter() - started,
            peak_memory_mb=memory,
        ),
        goals=GOALS,
        charts=tuple(
            Chart(f"Training loss, stage {stage}", (curve_from_log(config.run_dir / stage / "log.jsonl"),))
            for stage in stages
        ),
        decoder=proof,
    )
    write_report(config.run_dir / "report.html", report)
    facts = {
        **proof.metrics(),
        "train_seconds": result.trained.seconds,
        "total_seconds": time.perf_counter() - started,
        "peak_memory_mb": memory,
    }
    write_json(config.run_dir / "metrics.json", result.metrics() | facts)
    print(f"report: {config.run_dir / 'report.html'}")


if __name__ == "__main__":
    run_cli(main)
