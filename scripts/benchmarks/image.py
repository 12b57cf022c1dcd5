"""Captioning: train steps against mllama of `transformers` and against the plain way, what text alone costs, and how
time and memory grow.
"""

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from multimodal.batch import Batch
from multimodal.data.feature_cache import FeatureCache
from multimodal.model import MultimodalModel
from multimodal.train.compiled import compile_layers
from multimodal.train.precision import autocast
from scripts.benchmarks import flops
from scripts.benchmarks.captioning import (
    Job,
    captioning_batch,
    captioning_model,
    optimizer_of,
    real_tokens,
    training_step,
)
from scripts.benchmarks.case import (
    GPU_TOLERANCE,
    Agreement,
    Case,
    Finding,
    Goal,
    Pair,
    Settings,
    Side,
    Suite,
    compare,
    worst,
)
from scripts.benchmarks.masks import mask_growth
from scripts.benchmarks.memory import peak_in_fresh_process
from scripts.benchmarks.mllama import mllama_loss, mllama_of, picture_inputs
from scripts.benchmarks.plain import tricks_to_remove, without
from scripts.benchmarks.text_alone import text_rows
from scripts.benchmarks.waiting import share_of_waiting

MLLAMA = "transformers mllama"
MEMORY = Goal(0.4, 0.4, "memory")


def image_suite(settings: Settings) -> Suite:
    size = settings.size
    cases: list[Case] = []
    for tiles in (1, 2, 4):
        speed = {1: Goal(4.0, 5.0), 4: Goal(1.6, 2.0)}.get(tiles)
        for share in (0.0, 0.5):
            job = Job(batch=size.batch, caption=size.caption, tiles=(tiles,), text_only=share)
            goals = [goal for goal in (speed, MEMORY, Goal(None, 0.45, "mfu")) if goal is not None and not share]
            cases.append(
                Case(
                    suite="image",
                    name=f"train step, {_tiles(tiles)}{', half of the samples text alone' if share else ''}",
                    peer=MLLAMA,
                    build=partial(_against_mllama, settings, job),
                    goals=tuple(goals),
                    memory=True,
                    sweep=None if share else ("tiles", tiles),
                )
            )
    cases.append(
        Case(
            suite="image",
            name="train step, 1 tile, frozen encoder with the feature cache",
            peer=MLLAMA,
            build=partial(_cached_against_mllama, settings, _job(settings, trained=False)),
            goals=(Goal(10.0, 10.0), MEMORY),
            memory=True,
            note="ours reads the features from disk in each step",
        )
    )
    cases += _plain_rows(settings) + text_rows(settings) + _sweeps(settings)
    findings = [
        Finding(
            suite="image",
            name="time waiting for data",
            measure=partial(share_of_waiting, settings),
            most=0.05,
            note="share of a real training run on JPEG files of 640 x 480 pixels, one worker process",
        ),
        Finding(
            suite="image",
            name="growth of the largest attention mask with text length",
            measure=partial(mask_growth, settings),
            most=1.1,
            note="exponent: 1 = linear, 2 = square; 0 where there is no mask",
        ),
    ]
    if settings.on_gpu and settings.memory:
        findings.append(
            Finding(
                suite="image",
                name=f"GB of the card in all, {cases[0].name}, batch {size.batch}, fp32 optimizer states",
                measure=partial(_whole_card, settings, cases[0].name),
                most=80.0,
            )
        )
    return Suite(tuple(cases), tuple(findings))


def _whole_card(settings: Settings, name: str) -> float:
    peak = peak_in_fresh_process("image", name, "ours", settings)
    return (peak.before + peak.above) / 1e3


def _tiles(count: int) -> str:
    return f"{count} tile{'s' if count > 1 else ''}"


def _job(settings: Settings, **changes: Any) -> Job:
    defaults: dict[str, Any] = {"batch": settings.size.batch, "caption": settings.size.caption}
    return Job(**(defaults | changes))


def _sweeps(settings: Settings) -> list[Case]:
    """Rows that show growth: one thing grows, the rest is small."""
    size = settings.size
    small = partial(_job, settings, batch=size.sweep_batch)
    points: list[tuple[str, float, Job]] = [
        *(("batch", batch, _job(settings, batch=batch)) for batch in size.batches),
        *(("text tokens", text + size.prompt, small(caption=(text, text))) for text in size.text),
        *(("decoder layers", layers, small(layers=layers)) for layers in size.depths),
        *(("share of text alone", share, _job(settings, text_only=share)) for share in (0.0, 0.25, 0.5, 0.75)),
    ]
    return [
        Case(
            suite="image",
            name=f"train step, {what} {value:g}",
            peer=MLLAMA,
            build=partial(_against_mllama, settings, job),
            memory=True,
            sweep=(what, value),
        )
        for what, value, job in points
    ]


def _plain_rows(settings: Settings) -> list[Case]:
    job = _job(settings, tiles=(1, 2, 4), text_only=0.5)
    cases = []
    for names in tricks_to_remove(settings.without):
        everything = len(names) > 1
        taken = "any trick" if everything else " ".join(names)
        cases.append(
            Case(
                suite="image",
                name=f"train step, mixed, without {taken}",
                peer="ours, plain" if everything else f"ours, without {taken}",
                build=partial(_against_plain, settings, job, names),
                memory=everything,
                note="1, 2 and 4 tiles, half of the samples text alone",
            )
        )
    return cases


@dataclass(frozen=True)
class _Ours:
    """Our side of a training row."""

    model: MultimodalModel
    batch: Batch
    side: Side


def _training_model(settings: Settings, job: Job) -> MultimodalModel:
    model = captioning_model(settings, job)
    if settings.compile != "nobody":
        compile_layers(model, settings.torch_device)
    return model


def _ours(settings: Settings, job: Job) -> _Ours:
    model = _training_model(settings, job)
    batch = captioning_batch(model, settings, job)
    step = training_step(lambda: model.loss(batch), optimizer_of(model, job), settings)
    return _Ours(model, batch, Side(step, job.batch, real_tokens(batch), _flops(model, batch, settings, job)))


def _flops(model: MultimodalModel, batch: Batch, settings: Settings, job: Job, *, cached: bool = False) -> float:
    encoder: Any = model.modalities["image"].encoder  # type: ignore[union-attr]
    return flops.training_step(
        flops.count_batch(batch, settings.size),
        settings.size,
        features=encoder.feature_dim,
        layers=model.decoder.n_layers,
        first_adapted=model.decoder.first_adapted,
        encoder="cached" if cached else "trained" if job.trained else "frozen",
    )


def _compared_in(settings: Settings) -> AbstractContextManager[object]:
    """Outputs are compared in fp32, on a GPU in bf16: there the decoder's weights are."""
    return autocast(settings.torch_device, "bf16" if settings.on_gpu else "fp32")


def _against_mllama(settings: Settings, job: Job) -> Pair:
    ours = _ours(settings, job)
    return Pair(ours.side, *_mllama_side(ours.model, lambda: ours.model.loss(ours.batch), ours.batch, settings, job))


def _mllama_side(
    model: MultimodalModel, our_loss: Callable[[], tuple[Tensor, int]], batch: Batch, settings: Settings, job: Job
) -> tuple[Side, Callable[[], Agreement]]:
    """The peer on a batch of ours, and the check that both compute the same."""
    peer = mllama_of(model)
    if not job.trained:
        peer.model.vision_model.requires_grad_(False)
    if settings.compile == "both":
        compile_layers(peer, settings.torch_device)
    parts = picture_inputs(batch)
    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    step = training_step(lambda: mllama_loss(peer, parts), optimizer, settings)

    def agree() -> Agreement:
        kept_in_bf16 = not job.trained and settings.precision == "bf16"  # features of the cache
        tolerance = GPU_TOLERANCE if kept_in_bf16 else settings.tolerance
        blocks: Any = model.modalities["image"].adapter.layers  # type: ignore[union-attr]
        first = min(blocks, key=int)
        cross: Any = peer.model.language_model.layers[int(first)]
        pairs = [(blocks[first].q_proj.weight, cross.cross_attn.q_proj.weight)]
        pairs += [(blocks[first].k_proj.weight, cross.cross_attn.k_proj.weight)]
        if job.trained:
            encoder: Any = model.modalities["image"].encoder  # type: ignore[union-attr]
            pairs += [(encoder.stem.weight, peer.model.vision_model.patch_embedding.weight)]
        with _compared_in(settings):
            (ours, our_count), (theirs, their_count) = our_loss(), mllama_loss(peer, parts)
        if our_count != their_count:
            return Agreement("number of targets", float("inf"), tolerance)
        weights = zip(*pairs, strict=True)
        gradients = [torch.autograd.grad(loss, list(w)) for loss, w in zip((ours, theirs), weights, strict=True)]
        return worst(
            compare("loss", ours, theirs, tolerance=tolerance),
            *(compare("gradient", a, b, tolerance=10 * tolerance) for a, b in zip(*gradients, strict=True)),
        )

    return Side(step, job.batch, real_tokens(batch)), agree


def _cached_against_mllama(settings: Settings, job: Job) -> Pair:
    """Pictures are files here; the peer has its tiles ready, ours reads features from disk."""
    model = _training_model(settings, job)
    image: Any = model.modalities["image"]
    folder = tempfile.TemporaryDirectory(prefix="benchmark-features-")
    paths = _write_pictures(Path(folder.name), settings, job)
    template = captioning_batch(model, settings, job)
    plain = [image.prepare(path) for path in paths]
    batch = _with_items(template, image.collate(plain), settings)
    optimizer = optimizer_of(model, job)
    image.use_cache(FeatureCache(Path(folder.name) / "cache", max_gb=100.0), precision=settings.precision)

    def loss() -> tuple[Tensor, int]:
        assert folder.name  # kept as long as the step is
        return model.loss(_with_items(template, image.collate([image.prepare(path) for path in paths]), settings))

    side = Side(
        training_step(loss, optimizer, settings),
        job.batch,
        real_tokens(batch),
        _flops(model, batch, settings, job, cached=True),
    )
    loss()  # fills the cache
    return Pair(side, *_mllama_side(model, loss, batch, settings, job))


def _write_pictures(folder: Path, settings: Settings, job: Job) -> list[Path]:
    side = settings.size.encoder.tile_size
    generator = torch.Generator().manual_seed(settings.seed)
    paths = []
    for number in range(job.batch):
        pixels = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(pixels.numpy()).save(paths[-1])
    return paths


def _with_items(batch: Batch, items: Any, settings: Settings) -> Batch:
    media = replace(batch.media["image"], items=items).to(settings.torch_device)
    return replace(batch, media={"image": media})


def _against_plain(settings: Settings, job: Job, names: tuple[str, ...]) -> Pair:
    """Our model with and without some tricks: one model, for the weights are the same anyway."""
    ours = _ours(settings, job)
    model, batch = ours.model, ours.batch
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def plain() -> object:
        with without(model, names):
            return ours.side.step()

    def agree() -> Agreement:
        losses, gradients = [], []
        for taken in ((), names):
            with without(model, taken), _compared_in(settings):
                loss = model.loss(batch)[0]
                losses.append(loss)
                gradients.append(torch.autograd.grad(loss, trained))
        tolerance = settings.tolerance
        return worst(
            compare("loss", *losses, tolerance=tolerance),
            *(compare("gradient", a, b, tolerance=10 * tolerance) for a, b in zip(*gradients, strict=True)),
        )

    return Pair(ours.side, Side(plain, job.batch, real_tokens(batch)), agree)
