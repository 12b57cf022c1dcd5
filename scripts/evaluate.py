"""Score an adapter on captioned pictures or built-in scenes, beside its controls: pictures shuffled, pictures blank.

python -m scripts.evaluate --adapter runs/flickr8k/adapter --source FOLDER --split test --run-dir runs/flickr8k/test
"""

import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from multimodal.config import expect_at_least, parse
from multimodal.errors import UserError, run_cli
from multimodal.files import write_whole
from multimodal.model import MultimodalModel
from multimodal.report import RunFacts, write_json, write_report
from multimodal.train.logging import peak_memory_mb
from vision.caption_data import read_captions
from vision.caption_report import caption_cards, caption_report
from vision.caption_tables import Columns
from vision.caption_training import SCENES, ask_pictures
from vision.captioning import DESCRIBED, ask_scenes, evaluate_both


@dataclass(frozen=True, kw_only=True)
class Config:
    """Evaluate an adapter with its controls."""

    adapter: Path
    """Adapter folder."""
    run_dir: Path
    """Gets `metrics.json`, `report.html` and `captions.jsonl`."""
    source: str = SCENES
    """"scenes" (held-out combinations), a folder, a manifest, or a data set of the hub."""
    subset: str = ""
    """Configuration of a data set of the hub that has several."""
    split: str = "test"
    columns: Columns = field(default_factory=Columns)
    count: int = 0
    """At most so many pictures; 0 = all (500 scenes)."""
    scene_size: int = 64
    beams: int = 3
    """Beam search width; 1 = greedy."""
    length_penalty: float = 1.0
    max_new_tokens: int = 40
    describe_with: str = ""
    """Prompt for a description of the picture from which alone questions are answered, too; empty: only at the
    picture."""
    batch_size: int = 32
    cards: int = 20
    """Pictures shown in the report, chosen by the seed."""
    seed: int = 0
    decoder: str | None = None
    """Use this decoder in place of the one that the adapter names."""
    force_decoder: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        expect_at_least(1, beams=self.beams, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size)
        expect_at_least(0, count=self.count, cards=self.cards)
        expect_at_least(1, scene_size=self.scene_size)


def main() -> None:
    config = parse(Config, description=__doc__)
    started = time.perf_counter()
    model = MultimodalModel.from_pretrained(
        config.adapter, decoder=config.decoder, force_decoder=config.force_decoder, device=config.device
    )
    options = {
        "num_beams": config.beams,
        "length_penalty": config.length_penalty,
        "max_new_tokens": config.max_new_tokens,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    if config.source == SCENES:
        captions, questions = ask_scenes(model, count=config.count or 500, size=config.scene_size, seed=config.seed + 1)
        asked, pictures = [*captions, *questions], {}
    else:
        records = read_captions(
            config.source,
            split=config.split,
            columns=config.columns,
            subset=config.subset or None,
            limit=config.count or None,
        )
        asked, pictures = ask_pictures(model, records), {record.id: record.image for record in records}
        if not asked:
            raise UserError(f"{config.source}: no readable picture in split {config.split}")
    evaluations = evaluate_both(model, asked, describe_with=config.describe_with, **options)
    metrics = {name: value for e in evaluations for name, value in e.metrics().items()}
    facts = {"beams": config.beams, "seed": config.seed, "pictures": len(evaluations[0].samples)}
    write_json(config.run_dir / "metrics.json", metrics | facts)
    lines = (
        json.dumps(
            {"image": one.source, "prompt": one.prompt, "text": text, "described": DESCRIBED in evaluation.scores},
            ensure_ascii=False,
        )
        for evaluation in evaluations
        for one, text in zip(evaluation.samples, evaluation.predictions, strict=True)
    )
    write_whole(config.run_dir / "captions.jsonl", "".join(f"{line}\n" for line in lines))
    for evaluation in evaluations:
        print(evaluation)
    shown = random.Random(config.seed).sample(
        range(len(evaluations[0].samples)), min(config.cards, len(evaluations[0].samples))
    )
    report = caption_report(
        evaluations=evaluations,
        cards=caption_cards(model, evaluations, shown, pictures=pictures),
        cards_note=f"{len(shown)} pictures chosen by seed {config.seed}",
        run=RunFacts(
            title=f"Captions of {config.source}, {config.split} split",
            seed=config.seed,
            seconds=time.perf_counter() - started,
            peak_memory_mb=peak_memory_mb(model.device),
        ),
    )
    write_report(config.run_dir / "report.html", report)
    print(f"report: {config.run_dir / 'report.html'}")


if __name__ == "__main__":
    run_cli(main)
