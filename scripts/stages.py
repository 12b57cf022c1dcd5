"""What each stage of training costs for a system on the meta device, and tokens of a picture by tile size."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from multimodal.meta_run import META, RunCost
from multimodal.stage_cost import DecoderDtype, StageCost, Workload, decoder_bytes, parameters
from scripts.systems import MetaSystem, System
from speech import speech_cost
from speech.best_rq import BestRQTask
from speech.speech_cost import PRETRAINING, best_rq_run
from vision import image_cost, video_cost
from vision.encoder import ImageEncoder

MODALITIES: dict[str, tuple[dict[str, tuple[str, ...]], Callable[..., RunCost]]] = {
    "image": (image_cost.STAGES, image_cost.image_run),
    "video": (video_cost.STAGES, video_cost.video_run),
    "speech": (speech_cost.STAGES, speech_cost.speech_run),
}
"""For each part of a `MetaSystem` its stages, with what they train, and what runs one."""
TILE_SIZES = (336, 448, 560)
"""Pixels, in patches of 14: the paper's first stage, its annealing, and the released instruct models (spec A3)."""


@dataclass(frozen=True)
class EncoderSize:
    """The image encoder at a tile size: its parameters, and tokens of pictures with 1, 2, ... tiles."""

    tile_size: int
    parameters: int
    tokens: tuple[int, ...]


def encoder_sizes(system: System) -> list[EncoderSize]:
    """The image encoder at its own tile size, and at the paper's if it has the paper's patches."""
    if system.image is None:
        return []
    config = system.image.encoder
    found = []
    for size in sorted({config.tile_size, *(TILE_SIZES if config.patch_size == 14 else ())}):
        with META:
            encoder = ImageEncoder(replace(config, tile_size=size))
        tokens = tuple(n * encoder.tokens_per_tile for n in range(1, config.max_tiles + 1))
        found.append(EncoderSize(size, parameters([encoder]), tokens))
    return found


def stage_costs(plain: MetaSystem, checkpointed: MetaSystem, workload: Workload) -> list[StageCost]:
    """Every stage of every modality that the system has, at one workload.

    Args:
        plain, checkpointed: the same system, once with recomputed activations.
        workload: sizes of a batch.
    """
    decoder = decoder_bytes(plain.decoder)
    costs: list[StageCost] = []
    for kind, (stages, run) in MODALITIES.items():
        one, other = getattr(plain, kind), getattr(checkpointed, kind)
        if one is None:
            continue
        loaded = parameters([one, one.image] if kind == "video" else [one])
        for name, train in stages.items():
            trained = {part: sum(p.numel() for _, p in one.parts()[part]) for part in train}
            cost = run(one, plain.decoder, workload, train=train)
            again = run(other, checkpointed.decoder, workload, train=train) if train else cost
            costs.append(StageCost(name, trained, loaded, decoder, cost, again, workload.batch))
    if plain.best_rq is not None and checkpointed.best_rq is not None:
        costs.append(_pretraining(plain.best_rq, checkpointed.best_rq, workload))
    return costs


def _pretraining(plain: BestRQTask, checkpointed: BestRQTask, workload: Workload) -> StageCost:
    """The speech encoder alone, without a decoder."""
    trained = {part: sum(p.numel() for _, p in named) for part, named in plain.parts().items()}
    cost, again = (best_rq_run(task, workload) for task in (plain, checkpointed))
    none: dict[DecoderDtype, int] = {"bf16": 0, "int8": 0}
    return StageCost(PRETRAINING, trained, parameters([plain]), none, cost, again, workload.batch)
