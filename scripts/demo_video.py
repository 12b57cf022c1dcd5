"""Video question answering in minutes: train on built-in clips, answer about unseen combinations, write a report.

make demo-video      (python -m scripts.demo_video --config scripts/configs/demo_video.yaml)
"""

import random
import time
from dataclasses import dataclass

from multimodal.chart import Chart, curve_from_log
from multimodal.config import expect_at_least, parse
from multimodal.errors import run_cli
from multimodal.report import RunFacts, write_json, write_report
from multimodal.text_proof import decoder_proof
from multimodal.train.logging import peak_memory_mb
from vision.video_report import video_cards, video_report
from vision.video_training import VideoQAConfig, ask_both_ways, clip_sets, evaluate_both_ways, train_video_qa


@dataclass(frozen=True, kw_only=True)
class Config(VideoQAConfig):
    """Training on built-in clips and a report."""

    held_out: int = 200
    """Clips with held-out combinations in the evaluation, with one question each."""
    cards: int = 24
    """Clips shown in the report."""

    def __post_init__(self) -> None:
        expect_at_least(2, held_out=self.held_out)  # the controls need another clip
        expect_at_least(0, cards=self.cards)


def main() -> None:
    config = parse(Config, description=__doc__)
    started = time.perf_counter()
    model, result = train_video_qa(config)
    proof = decoder_proof(model)
    seed = config.train.seed
    asked = ask_both_ways(model, clip_sets(config).reported(config.held_out), choice=config.data.choice > 0)
    evaluations, metrics = evaluate_both_ways(model, asked, describe_with=config.data.describe_with, seed=seed)
    for evaluation in evaluations.values():
        print(evaluation)
    memory = peak_memory_mb(model.device)
    facts = {
        **proof.metrics(),
        "train_seconds": result.seconds,
        "total_seconds": time.perf_counter() - started,
        "samples_per_second": result.samples_per_second,
        "peak_memory_mb": memory,
    }
    write_json(config.run_dir / "metrics.json", metrics | facts)
    shown = random.Random(seed).sample(range(config.held_out), min(config.cards, config.held_out))
    report = video_report(
        evaluations=evaluations,
        metrics=metrics,
        cards=video_cards(model, evaluations, shown),
        cards_note=f"{len(shown)} of {config.held_out} held-out clips, chosen by seed {seed}",
        run=RunFacts(
            title="Questions about clips with unseen combinations",
            subtitle="A video adapter trained on built-in clips; the image parts and the decoder below it are frozen.",
            seed=seed,
            seconds=time.perf_counter() - started,
            peak_memory_mb=memory,
        ),
        charts=(Chart("Training loss per answer token", (curve_from_log(config.run_dir / "answer" / "log.jsonl"),)),),
        decoder=proof,
    )
    write_report(config.run_dir / "report.html", report)
    print(f"report: {config.run_dir / 'report.html'}")


if __name__ == "__main__":
    run_cli(main)
