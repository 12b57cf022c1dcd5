"""Score a speech adapter beside its controls: another's speech, and silence.

python -m scripts.evaluate_asr --adapter runs/grid/adapter --data.source FOLDER --data.test-split test --run-dir runs/t
"""

import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from multimodal.config import parse
from multimodal.errors import UserError, run_cli
from multimodal.model import MultimodalModel
from multimodal.report import RunFacts, write_json, write_report
from multimodal.train.logging import peak_memory_mb
from scripts.spoken_texts import ALL_WRITERS
from speech.asr import all_metrics, evaluate_sets
from speech.asr_report import asr_report, speech_cards
from speech.speech_data import SpeechDataConfig, evaluation_sets


@dataclass(frozen=True, kw_only=True)
class Config:
    """Evaluate a speech adapter with its controls."""

    adapter: Path
    """Adapter folder."""
    run_dir: Path
    """Gets `metrics.json`, `report.html` and `transcripts.jsonl`."""
    data: SpeechDataConfig = field(default_factory=SpeechDataConfig)
    beams: int = 1
    """Beam search width; 1 = greedy."""
    max_new_tokens: int = 256
    """Longer answers are cut off: about two tokens a word."""
    batch_size: int = 32
    cards: int = 20
    """Utterances shown in the report, chosen by the seed."""
    seed: int = 0
    decoder: str | None = None
    """Use this decoder in place of the one that the adapter names."""
    force_decoder: bool = False
    device: str = "auto"


def main() -> None:
    config = parse(Config, description=__doc__)
    started = time.perf_counter()
    sets = evaluation_sets(config.data, seed=config.seed, writers=ALL_WRITERS)
    if not sets:
        raise UserError("nothing to evaluate: expected --data.test-split to name a split with transcripts")
    model = MultimodalModel.from_pretrained(
        config.adapter, decoder=config.decoder, force_decoder=config.force_decoder, device=config.device
    )
    options = {"num_beams": config.beams, "max_new_tokens": config.max_new_tokens}
    scores = evaluate_sets(model, sets, seed=config.seed, batch_size=config.batch_size, **options)
    for name, found in scores.items():
        print(f"{name or 'test'}\n{found.evaluation}")
    shown_set = next(iter(scores.values()))  # the main one, where there is one
    count = len(shown_set.evaluation.samples)
    shown = random.Random(config.seed).sample(range(count), min(config.cards, count))
    report = asr_report(
        scores=scores,
        cards=speech_cards(model, shown_set, shown),
        cards_note=f"{len(shown)} of {count} utterances, chosen by seed {config.seed}",
        run=RunFacts(
            title=f"Speech recognition of {config.data.source}",
            seed=config.seed,
            seconds=time.perf_counter() - started,
            peak_memory_mb=peak_memory_mb(model.device),
        ),
    )
    write_report(config.run_dir / "report.html", report)
    facts = {"beams": config.beams, "seed": config.seed, "utterances": count}
    write_json(config.run_dir / "metrics.json", all_metrics(scores) | facts)
    lines = (
        json.dumps({"set": name, "id": one.utterance.id, "reference": one.utterance.wanted, "text": text})
        for name, found in scores.items()
        for one, text in zip(found.evaluation.samples, found.evaluation.predictions, strict=True)
    )
    (config.run_dir / "transcripts.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"report: {config.run_dir / 'report.html'}")


if __name__ == "__main__":
    run_cli(main)
