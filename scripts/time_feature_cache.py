"""What the feature cache saves: train on the same clips for some epochs with and without it, and compare.

python -m scripts.time_feature_cache --config scripts/configs/video_qa.yaml --data.clips 200 --run-dir runs/cache

Every clip is rendered or read once before, so that no first epoch pays for what the other has made.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from multimodal.chart import curve_from_log
from multimodal.config import parse
from multimodal.errors import UserError, run_cli
from multimodal.report import write_json
from vision.video_training import VideoQAConfig, clip_sets, train_video_qa


@dataclass(frozen=True, kw_only=True)
class Config(VideoQAConfig):
    """Train twice, with and without the feature cache; `metrics.json` holds losses and samples a second by epoch."""

    epochs: int = 2
    """Of both; the cache is filled in the first one."""


def main() -> None:
    config = parse(Config, description=__doc__)
    if config.epochs < 2:
        raise UserError(f"--epochs {config.epochs}: expected 2 or more; the first one fills the cache")
    size = config.train.batch_size
    data = replace(config.data, dev_count=0, clip_folder=clip_sets(config).folder)  # of both runs
    pretrain, simple = replace(config.pretrain, steps=0), replace(config.simple, steps=0)
    config = replace(config, data=data, pretrain=pretrain, simple=simple)
    clips = clip_sets(config).learnt()
    if len(clips) % size:
        raise UserError(f"{len(clips)} clips in steps of {size}: expected steps that end with the epoch")
    for number in range(len(clips)):
        clips[number].clip.read_bytes()
    train = replace(config.train, steps=config.epochs * len(clips) // size, eval_every=0, max_minutes=None)
    logs = []
    for cache in ("off", "auto"):
        run_dir = config.run_dir / f"cache_{cache}"
        train_video_qa(replace(config, train=train, run_dir=run_dir, cache=cache))
        logs.append(run_dir / "answer" / "log.jsonl")
    metrics = compare(*logs)
    write_json(config.run_dir / "metrics.json", metrics | {"clips": len(clips), "seed": train.seed})
    print("\n".join(f"{name}: {value}" for name, value in metrics.items()))


def compare(without: Path, cached: Path) -> dict[str, Any]:
    """Whether the losses are the same, samples a second by epoch, and how many times faster the second epoch is."""
    slow, fast = samples_per_second(without), samples_per_second(cached)
    return {
        "losses_identical": curve_from_log(without) == curve_from_log(cached),
        "samples_per_second_without": slow,
        "samples_per_second_cached": fast,
        "speed_up_second_epoch": fast[1] / slow[1],
    }


def samples_per_second(log: Path) -> list[float]:
    """Of each epoch, in order; its steps have equally many samples."""
    epochs, rates = (curve_from_log(log, key).points for key in ("epoch", "samples_per_second"))
    by_epoch: dict[float, list[float]] = {}
    for (_, epoch), (_, rate) in zip(epochs, rates, strict=True):
        by_epoch.setdefault(epoch, []).append(rate)
    return [harmonic_mean(found) for found in by_epoch.values()]


if __name__ == "__main__":
    run_cli(main)
