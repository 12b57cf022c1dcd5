"""Captioning: train steps against mllama of `transformers` and against the plain way, what text alone costs, and how
time and memory grow.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from multimodal.batch import Batch
from multimodal.data.feature_cache import FeatureCache
from multimodal.loss import IGNORE, frozen_head_loss
from multimodal.model import MultimodalModel
from scripts.benchmarks import flops
from scripts.benchmarks.captioning import (
    Job,
    captioning_batch,
    captioning_model,
    optimizer_of,
    real_tokens,
    training_step,
)
from scripts.benchmarks.case import Agreement, Case, Finding, Goal, Pair, Settings, Side, Suite, compare, worst
from scripts.benchmarks.masks import mask_growth
from scripts.benchmarks.memory import peak_in_fresh_process
from scripts.benchmarks.mllama import mllama_loss, mllama_of, picture_inputs
from scripts.benchmarks.plain import tricks_to_remove, without
from scripts.benchmarks.waiting import share_of_waiting

MLLAMA = "transformers mllama"
TOLERANCE = 2e-4
"""Of losses and gradients in fp32, as a share of the largest value."""
BF16_TOLERANCE = 5e-2
"""Where the decoder is kept in bf16, as on a GPU."""
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
    cases += _plain_rows(settings) + _text_rows(settings) + _sweeps(settings)
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
    return [
        Case(
            suite="image",
            name=f"train step, mixed, without {names[0] if len(names) == 1 else 'any trick'}",
            peer="ours, plain" if len(names) > 1 else f"ours, without {names[0]}",
            build=partial(_against_plain, settings, job, names),
            memory=len(names) > 1,
            note="1, 2 and 4 tiles, half of the samples text alone",
        )
        for names in tricks_to_remove(settings.without)
    ]


def _text_rows(settings: Settings) -> list[Case]:
    goal = (Goal(1.05, 1.05),)
    return [
        Case(
            suite="image",
            name="text alone, beside the bare decoder",
            peer="bare decoder, forward",
            build=partial(_text_against_bare, settings, _job(settings, text_only=1.0)),
            measure="cost",
            goals=goal,
        ),
        Case(
            suite="image",
            name="pictures and as much text alone, beside pictures and the bare decoder",
            peer="pictures, then bare decoder, forward",
            build=partial(_mixed_against_parts, settings, _job(settings, text_only=0.5)),
            measure="cost",
            goals=goal,
        ),
    ]


@dataclass(frozen=True)
class _Ours:
    """Our side of a training row."""

    model: MultimodalModel
    batch: Batch
    side: Side


def _ours(settings: Settings, job: Job) -> _Ours:
    model = captioning_model(settings, job)
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
    parts = picture_inputs(batch)
    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    step = training_step(lambda: mllama_loss(peer, parts), optimizer, settings)

    def agree() -> Agreement:
        tolerance = BF16_TOLERANCE if settings.on_gpu else TOLERANCE
        blocks: Any = model.modalities["image"].adapter.layers  # type: ignore[union-attr]
        first = min(blocks, key=int)
        cross: Any = peer.model.language_model.layers[int(first)]
        pairs = [(blocks[first].q_proj.weight, cross.cross_attn.q_proj.weight)]
        pairs += [(blocks[first].k_proj.weight, cross.cross_attn.k_proj.weight)]
        if job.trained:
            encoder: Any = model.modalities["image"].encoder  # type: ignore[union-attr]
            pairs += [(encoder.stem.weight, peer.model.vision_model.patch_embedding.weight)]
        with torch.autocast(settings.device, enabled=settings.on_gpu, dtype=torch.bfloat16):
            losses, counts = zip(our_loss(), mllama_loss(peer, parts), strict=True)
        if counts[0] != counts[1]:
            return Agreement("number of targets", float("inf"), tolerance)
        gradients = [torch.autograd.grad(losses[side], [pair[side] for pair in pairs]) for side in (0, 1)]
        return worst(
            compare("loss", *losses, tolerance=tolerance),
            *(compare("gradient", a, b, tolerance=10 * tolerance) for a, b in zip(*gradients, strict=True)),
        )

    return Side(step, job.batch, real_tokens(batch)), agree


def _cached_against_mllama(settings: Settings, job: Job) -> Pair:
    """Pictures are files here; the peer has its tiles ready, ours reads features from disk."""
    model = captioning_model(settings, job)
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
    side = settings.size.encoder.tile
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
    step = training_step(lambda: model.loss(batch), optimizer_of(model, job), settings)

    def plain() -> object:
        with without(model, names):
            return step()

    def agree() -> Agreement:
        losses, gradients = [], []
        for taken in ((), names):
            with without(model, taken), torch.autocast(settings.device, enabled=settings.on_gpu, dtype=torch.bfloat16):
                loss = model.loss(batch)[0]
                losses.append(loss)
                gradients.append(torch.autograd.grad(loss, trained))
        tolerance = BF16_TOLERANCE if settings.on_gpu else TOLERANCE
        return worst(
            compare("loss", *losses, tolerance=tolerance),
            *(compare("gradient", a, b, tolerance=10 * tolerance) for a, b in zip(*gradients, strict=True)),
        )

    return Pair(ours.side, Side(plain, job.batch, real_tokens(batch)), agree)


def _bare_loss(model: MultimodalModel, batch: Batch) -> Tensor:
    """The bare decoder's forward pass, with the same loss."""
    lm: Any = model.decoder.lm
    hidden = lm.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return frozen_head_loss(hidden, batch.targets, model.decoder)[0]


def _text_against_bare(settings: Settings, job: Job) -> Pair:
    model = captioning_model(settings, job)
    optimizer_of(model, job)  # what is trained requires grad
    batch = captioning_batch(model, settings, Job(batch=job.batch, caption=(job.caption[1],) * 2, text_only=1.0))

    def agree() -> Agreement:
        with torch.no_grad():
            return compare("loss", model.loss(batch)[0], _bare_loss(model, batch), tolerance=0.0)

    def bare() -> float:
        with torch.no_grad():
            return float(_bare_loss(model, batch))

    tokens = real_tokens(batch)
    return Pair(Side(lambda: float(model.loss(batch)[0]), job.batch, tokens), Side(bare, job.batch, tokens), agree)


def _mixed_against_parts(settings: Settings, job: Job) -> Pair:
    model = captioning_model(settings, job)
    caption = (job.caption[1],) * 2  # of one length, so that padding plays no part
    mixed = captioning_batch(model, settings, Job(batch=2 * job.batch, caption=caption, text_only=0.5))
    seeing = sorted(mixed.rows_with_media())
    text_rows = [row for row in range(len(mixed.input_ids)) if row not in seeing]
    pictures, text = mixed.of_rows(seeing), mixed.of_rows(text_rows)
    optimizer = optimizer_of(model, job)

    def parts() -> tuple[Tensor, int]:
        loss, count = model.loss(pictures)
        with torch.no_grad():
            bare = _bare_loss(model, text)
        return loss + bare, count + int((text.targets != IGNORE).sum())

    def agree() -> Agreement:
        with torch.no_grad():
            return compare("loss", model.loss(mixed)[0], parts()[0], tolerance=TOLERANCE)

    tokens = real_tokens(mixed)
    ours = training_step(lambda: model.loss(mixed), optimizer, settings)
    return Pair(
        Side(ours, 2 * job.batch, tokens), Side(training_step(parts, optimizer, settings), 2 * job.batch, tokens), agree
    )
