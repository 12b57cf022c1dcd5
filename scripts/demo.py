"""Graft in ten minutes: train an image adapter on built-in scenes, caption unseen ones, write a report.

make demo            (python -m scripts.demo --config scripts/configs/demo.yaml)
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
from vision.caption_report import caption_cards, caption_report
from vision.caption_training import CaptioningConfig, train_captioning
from vision.captioning import DETAIL_PROMPT, ask_scenes, evaluate_with_controls


@dataclass(frozen=True, kw_only=True)
class Config(CaptioningConfig):
    """Training on built-in scenes and a report."""

    held_out: int = 200
    """Held-out scenes in the evaluation, with two questions each."""
    cards: int = 24
    """Scenes shown in the report."""

    def __post_init__(self) -> None:
        expect_at_least(2, held_out=self.held_out)  # the controls need another picture
        expect_at_least(0, cards=self.cards)


def main() -> None:
    config = parse(Config, description=__doc__)
    started = time.perf_counter()

    model, result = train_captioning(config)
    proof = decoder_proof(model)

    captions, questions = ask_scenes(
        model, count=config.held_out, size=config.data.scene_size, seed=config.train.seed + 1
    )
    evaluations = [
        evaluate_with_controls(model, captions, max_new_tokens=64, seed=config.train.seed),
        evaluate_with_controls(model, questions, max_new_tokens=8, seed=config.train.seed),
        evaluate_with_controls(model, questions, describe_with=DETAIL_PROMPT, max_new_tokens=8, seed=config.train.seed),
    ]
    for evaluation in evaluations:
        print(evaluation)
    metrics = {name: value for e in evaluations for name, value in e.metrics().items()}
    memory = peak_memory_mb(model.device)
    shown = random.Random(config.train.seed).sample(range(config.held_out), min(config.cards, config.held_out))
    report = caption_report(
        evaluations=evaluations,
        cards=caption_cards(model, evaluations, shown, pictures={}),
        cards_note=f"{len(shown)} of {config.held_out} held-out scenes, chosen by seed {config.train.seed}",
        run=RunFacts(
            title="Captions of scenes with unseen combinations",
            subtitle="An image adapter trained on built-in scenes; the decoder below it is frozen.",
            seed=config.train.seed,
            seconds=time.perf_counter() - started,
            peak_memory_mb=memory,
        ),
        charts=(Chart("Training loss per answer token", (curve_from_log(config.run_dir / "initial" / "log.jsonl"),)),),
        decoder=proof,
    )
    write_report(config.run_dir / "report.html", report)
    write_json(
        config.run_dir / "metrics.json",
        metrics
        | {
            **proof.metrics(),
            "train_seconds": result.seconds,
            "total_seconds": time.perf_counter() - started,
            "samples_per_second": result.samples_per_second,
            "peak_memory_mb": memory,
        },
    )
    print(f"report: {config.run_dir / 'report.html'}")


if __name__ == "__main__":
    run_cli(main)
