"""Captioning a picture: tokens a second against mllama of `transformers`, the picture's encoding included."""

from functools import partial
from typing import Any

import torch

from multimodal.train.precision import autocast
from scripts.benchmarks.captioning import Job, captioning_model, prompts
from scripts.benchmarks.case import Agreement, Case, Goal, Pair, Settings, Side, Suite
from scripts.benchmarks.mllama import mllama_of, picture_inputs, strict_masks

BATCHES = (1, 8)


def generate_suite(settings: Settings) -> Suite:
    cases = [
        Case(
            suite="generate",
            name=f"generation, batch {batch}, {tiles} tile{'s' if tiles > 1 else ''}",
            peer="transformers mllama",
            build=partial(_pair, settings, Job(batch=batch, caption=(0, 0), tiles=(tiles,))),
            goals=(Goal(2.0, 3.0),) if tiles == 1 else (),
            note="greedy; tokens that are written",
        )
        for tiles in (1, 4)
        for batch in BATCHES
    ]
    return Suite(tuple(cases))


def _pair(settings: Settings, job: Job) -> Pair:
    model = captioning_model(settings, job).eval()
    samples, count = prompts(settings, job), settings.size.new_tokens
    peer = mllama_of(model).eval()
    (inputs,) = picture_inputs(model.collate(samples, pad_left=True).to(settings.torch_device))
    del inputs["labels"]
    options: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "pad_token_id": model.pad_id}

    def ours() -> list[list[int]]:
        with autocast(settings.torch_device, settings.precision):
            return model.generate_ids(samples, **options)

    @torch.no_grad()
    def theirs() -> list[list[int]]:
        with autocast(settings.torch_device, settings.precision), strict_masks():
            whole = peer.generate(**inputs, **options)  # type: ignore[operator, attr-defined]
        return whole[:, inputs["input_ids"].shape[1] :].tolist()

    def agree() -> Agreement:
        """Share of tokens that differ. In bf16 rounding may settle a near tie, and what follows differs then."""
        pairs = [pair for row in zip(ours(), theirs(), strict=True) for pair in zip(*row, strict=True)]
        differ = sum(a != b for a, b in pairs) / len(pairs)
        return Agreement("tokens", differ, 0.5 if settings.on_gpu or settings.precision == "bf16" else 0.0)

    written = job.batch * count
    return Pair(Side(ours, job.batch, written), Side(theirs, job.batch, written), agree)
