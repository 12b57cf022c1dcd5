"""Score a video adapter on questions about clips, beside its controls: another clip, a blank one, one middle frame, the
frames in reverse order.

python -m scripts.evaluate_video --adapter runs/grid/qa/adapter --source FOLDER --split test --run-dir runs/grid/test
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

from multimodal.config import expect_at_least, parse
from multimodal.errors import UserError, run_cli
from multimodal.model import MultimodalModel
from multimodal.report import RunFacts, write_json, write_report
from multimodal.train.logging import peak_memory_mb
from vision.clip_data import CLIPS, ClipDataConfig, ClipSets, read_questions
from vision.video_report import video_cards, video_report
from vision.video_training import ask_both_ways, evaluate_both_ways


@dataclass(frozen=True, kw_only=True)
class Config:
    """Evaluate a video adapter with its controls."""

    adapter: Path
    """Adapter folder."""
    run_dir: Path
    """Gets `metrics.json` and `report.html`."""
    source: str = CLIPS
    """"clips" (built in, held-out combinations), a folder with clips and questions or a public set, or a table."""
    split: str = "test"
    kinds: tuple[str, ...] = ()
    """Kinds of questions that are asked; none named: all."""
    count: int = 0
    """At most so many clips; 0 = all (500 built-in ones)."""
    choice: bool = False
    """Ask questions with options as multiple choice, too."""
    describe_with: str = ""
    """Prompt for a description of the clip from which alone open questions are then answered, too, such as "Describe
    everything in the video."; empty: not."""
    max_new_tokens: int = 16
    cards: int = 20
    """Clips shown in the report, chosen by the seed."""
    seed: int = 0
    decoder: str | None = None
    """Use this decoder in place of the one that the adapter names."""
    force_decoder: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        expect_at_least(1, max_new_tokens=self.max_new_tokens)
        expect_at_least(0, count=self.count, cards=self.cards)


def main() -> None:
    config = parse(Config, description=__doc__)
    started = time.perf_counter()
    model = MultimodalModel.from_pretrained(
        config.adapter, decoder=config.decoder, force_decoder=config.force_decoder, device=config.device
    )
    if "video" not in model.modalities:
        raise UserError(f"{config.adapter}: no video parts in it; expected an adapter of train_video_qa")
    if config.source == CLIPS:
        sets = ClipSets(ClipDataConfig(kinds=config.kinds), folder=config.run_dir / "clips", seed=config.seed)
        clips = sets.reported(config.count or 500)
    else:
        clips = read_questions(config.source, split=config.split, kinds=config.kinds)
        clips = clips[: config.count] if config.count else clips
    asked = ask_both_ways(model, clips, choice=config.choice)
    evaluations, metrics = evaluate_both_ways(
        model, asked, describe_with=config.describe_with, seed=config.seed, max_new_tokens=config.max_new_tokens
    )
    questions = len(asked["accuracy"])
    write_json(config.run_dir / "metrics.json", metrics | {"questions": questions, "seed": config.seed})
    shown = random.Random(config.seed).sample(range(questions), min(config.cards, questions))
    report = video_report(
        evaluations=evaluations,
        metrics=metrics,
        cards=video_cards(model, evaluations, shown),
        cards_note=f"{len(shown)} questions chosen by seed {config.seed}",
        run=RunFacts(
            title=f"Questions about {config.source}, {config.split} split",
            seed=config.seed,
            seconds=time.perf_counter() - started,
            peak_memory_mb=peak_memory_mb(model.device),
        ),
    )
    write_report(config.run_dir / "report.html", report)
    for evaluation in evaluations.values():
        print(evaluation)
    print(f"report: {config.run_dir / 'report.html'}")


if __name__ == "__main__":
    run_cli(main)
