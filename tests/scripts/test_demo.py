"""The demo on a tiny decoder: every number of `metrics.json` is there, and the report opens offline."""

import json
from pathlib import Path

from scripts import demo
from tests.scripts.commands import run_main
from tests.tiny_models import ENCODER, TILE

SCORES = [f"{name}{control}" for name in ("object_f1", "qa_accuracy") for control in ("", "_shuffled", "_blank")]
FACTS = ["train_seconds", "samples_per_second", "peak_memory_mb"]


def test_demo_writes_numbers_and_report(decoder_folder: Path, tmp_path: Path) -> None:
    sizes = [word for name, value in ENCODER.items() for word in (f"--encoder.{name.replace('_', '-')}", str(value))]
    flags = ["--run-dir", str(tmp_path), "--decoder", str(decoder_folder), "--held-out", "4", "--cards", "2", *sizes]
    flags += f"--data.scene-size {TILE} --train.steps 2 --train.batch-size 2 --train.no-tensorboard".split()
    flags += "--train.learning-rates adapter 1e-3 gates 1e-2 encoder 1e-3 tokens 0".split()
    assert run_main(demo.main, flags).status == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert all(0 <= metrics[name] <= 1 for name in SCORES)
    assert all(metrics[name] > 0 for name in FACTS)
    assert metrics["text_logits_max_abs_diff"] == 0
    assert metrics["decoder_sha256_before"] == metrics["decoder_sha256_after"]
    page = (tmp_path / "report.html").read_text()
    assert "data:image/" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
