"""Speech encoders: conformer forward and backward on ragged batches of 2 to 20 seconds, and a BEST-RQ step."""

import importlib.util
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.train.precision import autocast
from scripts.benchmarks.case import Agreement, Case, Finding, Goal, Pair, Settings, Side, Suite, compare, worst
from scripts.benchmarks.conformers import PEERS
from speech.best_rq import BestRQTask, mask_spans
from speech.conformer import Conformer
from speech.frames import SpeechBatch, frame_mask, pad_batch, stack_frames

FRAMES_A_SECOND = 100
SPEECHBRAIN = "BEST-RQ step against speechbrain's quantiser and heads"


def speech_suite(settings: Settings) -> Suite:
    cases = [
        Case(
            suite="speech",
            name="conformer, forward and backward, ragged batch",
            peer=peer,
            build=partial(_against_conformer, settings, peer),
            goals=(Goal(1.5, 2.0),),
            memory=True,
            note=note,
        )
        for peer, (_, note) in PEERS.items()
    ]
    cases = [replace(case, name=f"{case.name}, {case.peer}") for case in cases]
    cases.append(
        Case(
            suite="speech",
            name="BEST-RQ step over a step of the encoder alone",
            peer="ours, encoder alone",
            build=partial(_best_rq_over_encoder, settings),
            measure="cost",
            goals=(Goal(1.15, 1.10),),
            memory=True,
        )
    )
    if importlib.util.find_spec("speechbrain") is None:
        missing = Finding(suite="speech", name=SPEECHBRAIN, measure=None, note="speechbrain is not installed")
        return Suite(tuple(cases), (missing,))
    cases.append(
        Case(
            suite="speech",
            name=SPEECHBRAIN,
            peer="speechbrain",
            build=partial(_best_rq_against_speechbrain, settings),
            memory=True,
            note="behind our encoder; its heads see every frame",
        )
    )
    return Suite(tuple(cases))


def ragged_batch(settings: Settings) -> SpeechBatch:
    """Random features of utterances of 2 seconds to the longest, evenly spread."""
    size, rng = settings.size, random.Random(settings.seed)
    low, high = 2.0, size.longest_seconds
    seconds = [low + (high - low) * (number + rng.random()) / size.sounds for number in range(size.sounds)]
    generator = torch.Generator().manual_seed(settings.seed)
    frames = [round(one * FRAMES_A_SECOND) for one in seconds]
    sounds = [torch.randn(count, size.conformer.mels, generator=generator) for count in frames]
    return pad_batch(sounds).to(settings.device)


def _encoder(settings: Settings, **changes: Any) -> Conformer:
    torch.manual_seed(settings.seed)
    return Conformer(replace(settings.size.conformer, **changes)).to(settings.device)


def _step(loss: Callable[[], Tensor], module: nn.Module, settings: Settings) -> Callable[[], None]:
    """Forward and backward, without an optimizer."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        with autocast(settings.torch_device, settings.precision):
            total = loss()
        total.float().backward()

    return step


def _sum_of_valid(encoder: nn.Module, batch: SpeechBatch, lengths_B: Tensor) -> Tensor:
    """`lengths_B`: frames of the encoder's output that are no padding."""
    out_BTD = encoder(batch.padded, batch.lengths)
    return out_BTD.float().masked_fill(~frame_mask(lengths_B, out_BTD.shape[1])[..., None], 0).square().sum()


def _against_conformer(settings: Settings, peer: str) -> Pair:
    build, differs = PEERS[peer]
    # LASR has batch norm alone: in eval mode, for its statistics would take in padding.
    ours = _encoder(settings) if differs else _encoder(settings, conv_norm="batch").eval()
    theirs = build(ours).to(settings.device).train(ours.training)
    batch = ragged_batch(settings)
    lengths_B = ours.output_length(batch.lengths)
    frames = int(lengths_B.sum())

    def agree() -> Agreement:
        valid_BT = frame_mask(lengths_B, int(lengths_B.max()))
        outputs = [module(batch.padded, batch.lengths)[valid_BT] for module in (ours, theirs)]
        weights = [ours.input.weight, theirs.input.weight]
        # Not of the squares: of normed features these add up to the same whatever the weights are.
        target = torch.randn_like(outputs[0])
        gradients = [torch.autograd.grad((out * target).sum(), w)[0] for out, w in zip(outputs, weights, strict=True)]
        return worst(
            compare("features", *outputs, tolerance=settings.tolerance),
            compare("gradient", *gradients, tolerance=10 * settings.tolerance),
        )

    our_side, their_side = (
        Side(_step(partial(_sum_of_valid, module, batch, lengths_B), module, settings), len(batch), frames)
        for module in (ours, theirs)
    )
    return Pair(our_side, their_side, None if differs else agree)


def _best_rq_over_encoder(settings: Settings) -> Pair:
    encoder = _encoder(settings)
    task = BestRQTask(encoder, settings.size.best_rq).to(settings.device)
    batch = ragged_batch(settings)
    lengths_B = encoder.output_length(batch.lengths)
    frames = int(lengths_B.sum())
    ours = _step(lambda: task.loss(batch)[0], task, settings)
    alone = _step(partial(_sum_of_valid, encoder, batch, lengths_B), encoder, settings)
    return Pair(Side(ours, len(batch), frames), Side(alone, len(batch), frames), None)


class SpeechbrainBestRQ(nn.Module):
    """BEST-RQ as speechbrain's recipe has it, with several codebooks: labels and logits of all frames, masked after.

    Args:
        task: ours, whose encoder, codebooks and heads are used.
    """

    def __init__(self, task: BestRQTask) -> None:
        super().__init__()
        from speechbrain.nnet.quantisers import RandomProjectionQuantizer  # type: ignore[import-not-found]

        self.encoder, self.heads, self.config = task.encoder, task.heads, task.config
        features = task.quantizer.projections_CSP.shape[1]
        self.quantisers = nn.ModuleList()
        for projection, entries in zip(task.quantizer.projections_CSP, task.quantizer.entries_CVP, strict=True):
            quantiser = RandomProjectionQuantizer(features, entries.shape[1], entries.shape[0])
            quantiser.P.copy_(projection)
            quantiser.CB.copy_(entries)
            self.quantisers.append(quantiser)

    def loss(self, batch: SpeechBatch, mask_BT: Tensor, noisy_BMF: Tensor) -> Tensor:
        stacked_BTS = stack_frames(batch.padded, self.encoder.config.stack)
        hidden_BTD = self.encoder(noisy_BMF, batch.lengths)
        losses = []
        for quantiser, head in zip(self.quantisers, self.heads, strict=True):
            labels_N = quantiser(stacked_BTS)[mask_BT]
            losses.append(F.cross_entropy(head(hidden_BTD)[mask_BT].float(), labels_N, reduction="sum"))
        return torch.stack(losses).mean()


def _best_rq_against_speechbrain(settings: Settings) -> Pair:
    encoder = _encoder(settings)
    config, stack = settings.size.best_rq, encoder.config.stack
    task = BestRQTask(encoder, config).to(settings.device)
    other = SpeechbrainBestRQ(task).to(settings.device)
    batch = ragged_batch(settings)
    frames = int(encoder.output_length(batch.lengths).sum())

    def theirs() -> Tensor:
        mask_BT = mask_spans(batch.lengths, stack=stack, span=config.mask_span, probability=config.mask_probability)
        mask_BM = mask_BT.repeat_interleave(stack, dim=1)[:, : batch.padded.shape[1]]
        noise_BMF = config.noise * torch.randn_like(batch.padded)
        return other.loss(batch, mask_BT, torch.where(mask_BM[..., None], noise_BMF, batch.padded))

    def agree() -> Agreement:
        losses = []
        for loss in (lambda: task.loss(batch)[0], theirs):
            torch.manual_seed(settings.seed)  # both draw the mask first, the noise next
            losses.append(loss())
        return compare("loss", *losses, tolerance=settings.tolerance)

    ours = Side(_step(lambda: task.loss(batch)[0], task, settings), len(batch), frames)
    return Pair(ours, Side(_step(theirs, task, settings), len(batch), frames), agree)
