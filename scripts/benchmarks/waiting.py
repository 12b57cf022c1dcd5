"""How much of a real training run is spent waiting for data: the engine, its loader, and JPEG files on disk."""

import statistics
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from multimodal.chart import curve_from_log
from multimodal.train.config import TrainConfig
from multimodal.train.loop import train
from scripts.benchmarks.captioning import Job, captioning_model, parts_to_train
from scripts.benchmarks.case import Settings
from vision.caption_data import CaptionImages
from vision.caption_tables import CaptionRecord
from vision.captioning import CaptionSamples

STEPS, FIRST = 8, 2
"""Steps of the run, and how many of them are not counted: the workers start in these."""
CAPTION = "a dog runs over the green grass while two children watch from the old bridge"


def share_of_waiting(settings: Settings) -> float:
    """The median over the counted steps of the share of time before a step's data was there."""
    job = Job(batch=settings.size.batch, caption=settings.size.caption)
    model = captioning_model(settings, job)
    image = model.modalities["image"]
    with tempfile.TemporaryDirectory(prefix="benchmark-waiting-") as name:
        folder = Path(name)
        records = [_write_record(folder, number) for number in range(2 * job.batch)]
        data = CaptionSamples(model, CaptionImages(records, image.tiling))  # type: ignore[arg-type]
        config = TrainConfig(
            steps=STEPS,
            batch_size=job.batch,
            learning_rates=parts_to_train(job),
            device=settings.device,
            precision=settings.precision,
            workers=1,
            tensorboard=False,
            log_every=STEPS + 1,
            save_every=0,
        )
        train(task=model, dataset=data, collate=model.collate, config=config, run_dir=folder / "run")
        shares = curve_from_log(folder / "run" / "log.jsonl", "wait_share").points
    return statistics.median(share for _, share in shares[FIRST:])


def _write_record(folder: Path, number: int) -> CaptionRecord:
    """A photograph's size of smooth noise, and a caption of mixed length."""
    small = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    path = folder / f"{number}.jpg"
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return CaptionRecord(path, (CAPTION[: 20 + number % 60],), path.name)
