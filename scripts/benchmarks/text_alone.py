"""What samples of text alone cost: as much as the bare decoder's forward pass, by themselves and beside pictures."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from multimodal.batch import Batch
from multimodal.loss import IGNORE, frozen_head_loss
from multimodal.model import MultimodalModel
from scripts.benchmarks.captioning import (
    Job,
    captioning_batch,
    captioning_model,
    optimizer_of,
    real_tokens,
    training_step,
)
from scripts.benchmarks.case import Agreement, Case, Goal, Pair, Settings, Side, compare


def text_rows(settings: Settings) -> list[Case]:
    goal, job = (Goal(1.05, 1.05),), Job(batch=settings.size.batch, caption=settings.size.caption)
    return [
        Case(
            suite="image",
            name="text alone, beside the bare decoder",
            peer="bare decoder, forward",
            build=partial(_text_against_bare, settings, job),
            measure="cost",
            goals=goal,
        ),
        Case(
            suite="image",
            name="pictures and as much text alone, beside pictures and the bare decoder",
            peer="pictures, then bare decoder, forward",
            build=partial(_mixed_against_parts, settings, job),
            measure="cost",
            goals=goal,
        ),
    ]


def _bare_loss(model: MultimodalModel, batch: Batch) -> Tensor:
    """The bare decoder's forward pass, with the same loss."""
    lm: Any = model.decoder.lm
    hidden = lm.get_decoder()(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return frozen_head_loss(hidden, batch.targets, model.decoder)[0]


def _text_against_bare(settings: Settings, job: Job) -> Pair:
    model = captioning_model(settings, job)
    optimizer_of(model, job)  # what is trained requires grad
    batch = captioning_batch(
        model, settings, Job(batch=job.batch, caption=(job.caption[1], job.caption[1]), text_only=1.0)
    )

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
    caption = (job.caption[1], job.caption[1])  # of one length, so that padding plays no part
    mixed = captioning_batch(model, settings, Job(batch=2 * job.batch, caption=caption, text_only=0.5))
    seeing = sorted(mixed.rows_with_media())
    blind = [row for row in range(len(mixed.input_ids)) if row not in seeing]
    pictures, text = mixed.of_rows(seeing), mixed.of_rows(blind)
    optimizer = optimizer_of(model, job)

    def parts() -> tuple[Tensor, int]:
        loss, count = model.loss(pictures)
        with torch.no_grad():
            bare = _bare_loss(model, text)
        return loss + bare, count + int((text.targets != IGNORE).sum())

    def agree() -> Agreement:
        with torch.no_grad():
            return compare("loss", model.loss(mixed)[0], parts()[0], tolerance=settings.tolerance)

    tokens = real_tokens(mixed)
    ours = training_step(lambda: model.loss(mixed), optimizer, settings)
    return Pair(
        Side(ours, 2 * job.batch, tokens), Side(training_step(parts, optimizer, settings), 2 * job.batch, tokens), agree
    )
