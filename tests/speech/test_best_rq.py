"""BEST-RQ: labels as speechbrain makes them, masks as often as the paper's, a loss on masked frames alone."""

import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal.errors import UserError
from multimodal.train.config import TrainConfig
from multimodal.train.optim import build_optimizer, freeze_and_select, scale_and_clip
from speech.best_rq import BestRQConfig, BestRQTask, LabelStatistics, RandomProjectionQuantizer, mask_spans
from speech.conformer import Conformer, ConformerConfig
from speech.frames import SpeechBatch, pad_batch, stack_frames, trim

LENGTHS = (400, 130, 257)


def build(*, width: int = 32, layers: int = 1, **changes: Any) -> BestRQTask:
    torch.manual_seed(0)
    encoder = Conformer(ConformerConfig(width=width, layers=layers, heads=4, ffn=64, dropout=0.0))
    settings: dict[str, Any] = {"codebooks": 3, "entries": 64} | changes
    return BestRQTask(encoder, BestRQConfig(**settings))


def speech(lengths: tuple[int, ...] = LENGTHS, *, seed: int = 1) -> SpeechBatch:
    generator = torch.Generator().manual_seed(seed)
    return pad_batch([torch.randn(length, 80, generator=generator) for length in lengths])


def test_labels_are_those_of_speechbrain() -> None:
    """Its rule: project, bring to unit length, take the entry at the least Euclidean distance."""
    quantizer = RandomProjectionQuantizer(features=320, codebooks=2, entries=256, code_dim=16)
    x = torch.randn(1000, 320, generator=torch.Generator().manual_seed(0))
    labels = quantizer(x)
    assert labels.shape == (1000, 2) and labels.dtype == torch.int64
    for c in range(2):
        projected = F.normalize(x @ quantizer.projections_CSP[c], dim=-1)
        distances = (quantizer.entries_CVP[c].unsqueeze(1) - projected.unsqueeze(0)).norm(dim=-1)
        assert torch.equal(labels[:, c], distances.argmin(dim=0))
    assert (labels[:, 0] == labels[:, 1]).float().mean() < 0.05  # the codebooks are independent
    assert torch.equal(quantizer(1e3 * x), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(x), labels)


def test_quantizer_is_drawn_once_from_its_seed() -> None:
    torch.manual_seed(0)
    first = RandomProjectionQuantizer(features=320, codebooks=4, entries=64, code_dim=16, seed=3)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))  # the global generator is left alone
    again, other = (
        RandomProjectionQuantizer(features=320, codebooks=4, entries=64, code_dim=16, seed=seed) for seed in (3, 4)
    )
    assert torch.equal(first.projections_CSP, again.projections_CSP)
    assert torch.equal(first.entries_CVP, again.entries_CVP)
    assert not torch.equal(first.entries_CVP, other.entries_CVP)
    assert list(first.parameters()) == []
    torch.testing.assert_close(first.entries_CVP.norm(dim=-1), torch.ones(4, 64))
    bound = math.sqrt(6 / 336)  # Xavier, uniform
    assert 0.99 * bound < first.projections_CSP.abs().max() <= bound
    assert first.projections_CSP.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_labels_do_not_depend_on_the_batch() -> None:
    task, batch = build(), speech()
    together = task.quantizer(stack_frames(trim(batch.padded, batch.lengths), 4))
    for i, length in enumerate(LENGTHS):
        x = batch.padded[i : i + 1, :length]
        alone = task.quantizer(stack_frames(x, 4))
        assert torch.equal(together[i, : alone.shape[1]], alone[0])


def test_55_percent_of_the_frames_are_masked_away_from_the_edges() -> None:
    mask = mask_spans(torch.full((64,), 6000), generator=torch.Generator().manual_seed(0))
    assert mask.shape == (64, 1500)
    assert mask[:, 8:].float().mean().item() == pytest.approx(1 - 0.975**32, abs=0.01)  # 55.5 %
    edges = torch.cat([mask_spans(torch.full((20_000,), 32), generator=torch.Generator().manual_seed(1))])
    for frame in (0, 3, 7):
        assert edges[:, frame].float().mean().item() == pytest.approx(1 - 0.975 ** (4 * frame + 4), abs=0.012)


def test_spans_are_whole_and_never_on_padding() -> None:
    lengths = torch.tensor([999, 1000, 4, 333])
    mask = mask_spans(lengths, probability=0.01, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mask, mask_spans(lengths, probability=0.01, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(mask, mask_spans(lengths, probability=0.01, generator=torch.Generator().manual_seed(1)))
    for row, frames in zip(mask, (250, 250, 1, 84), strict=True):
        assert not row[frames:].any()
        values, counts = row[:frames].unique_consecutive(return_counts=True)
        whole = counts[values][:-1] if len(values) and values[-1] else counts[values]  # the last may be cut
        assert (whole >= 8).all()
    assert mask[:2].any() and not mask.all()
    assert mask_spans(lengths, probability=1.0).sum().item() == 250 + 250 + 1 + 84
    with pytest.raises(ValueError, match="multiple of 4"):
        mask_spans(lengths, span=30)


def observe(task: BestRQTask, batch: SpeechBatch, *, seed: int) -> tuple[Tensor, int, Tensor, Tensor]:
    """Loss, weight, what the encoder heard, and its output with gradient kept."""
    heard: list[Tensor] = []
    given: list[Tensor] = []

    def keep(_module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        heard.append(inputs[0])
        given.append(output)

    handle = task.encoder.register_forward_hook(keep)
    torch.manual_seed(seed)
    loss, weight = task.loss(batch)
    handle.remove()
    return loss, weight, heard[0], given[0]


def test_loss_is_the_cross_entropy_of_clean_labels_on_masked_frames() -> None:
    task, batch = build(noise=0.2), speech()
    loss, weight, heard, hidden = observe(task, batch, seed=7)
    torch.manual_seed(7)
    mask = mask_spans(batch.lengths)
    assert weight == mask.sum() > 50
    labels = task.quantizer(stack_frames(batch.padded, 4)[mask])
    expected = sum(
        F.cross_entropy(head(hidden[mask]), labels[:, c], reduction="sum") for c, head in enumerate(task.heads)
    )
    torch.testing.assert_close(loss, expected / 3)
    assert loss.item() / weight == pytest.approx(math.log(64), abs=0.35)
    loss.backward()
    assert hidden.grad is not None
    reached = hidden.grad.abs().sum(dim=-1) > 0
    assert torch.equal(reached, mask)
    masked_mel = mask.repeat_interleave(4, dim=1)[:, :400]
    own = torch.arange(400) < batch.lengths[:, None]
    assert torch.equal(heard[~masked_mel & own], batch.padded[~masked_mel & own])
    noise = heard[masked_mel & own]
    assert noise.std().item() == pytest.approx(0.2, rel=0.02) and abs(noise.mean().item()) < 0.01


def test_labels_may_be_of_sounds_whatever_their_loudness() -> None:
    x = torch.randn(500, 320, generator=torch.Generator().manual_seed(0))
    louder = x * torch.linspace(0.5, 2, 500)[:, None] + torch.linspace(-3, 3, 500)[:, None]
    plain, without = build(), build(without_loudness=True)
    assert torch.equal(plain.labels(x), plain.quantizer(x))
    assert (plain.labels(louder) == plain.labels(x)).float().mean() < 0.7
    assert (without.labels(louder) == without.labels(x)).float().mean() > 0.99
    for task in (plain, without):
        loss, _, _, hidden = observe(task, speech(), seed=7)
        torch.manual_seed(7)
        mask = mask_spans(speech().lengths)
        labels = task.labels(stack_frames(speech().padded, 4)[mask])
        torch.testing.assert_close(loss, task.guess(hidden[mask], labels)[0])


def test_nothing_masked_is_no_weight() -> None:
    task = build(mask_probability=1e-9)
    loss, weight = task.loss(speech((8,)))
    assert weight == 0 and loss.item() == 0.0 and task.log_values() == {}


def test_padding_and_its_content_change_nothing() -> None:
    """One utterance in batches of other padding: the same masks are forced by masking everything, without noise."""
    batch = speech((61,))
    spoiled = SpeechBatch(torch.full((1, 90, 80), torch.nan), batch.lengths)
    spoiled.padded[:, :61] = batch.padded
    task = build(mask_probability=1.0, noise=0.0)
    torch.testing.assert_close(task.loss(batch)[0], task.loss(spoiled)[0])


def test_bf16_autocast() -> None:
    task, batch = build().train(), speech()
    torch.manual_seed(3)
    exact, weight = task.loss(batch)
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, same_weight = task.loss(batch)
    assert rough.dtype == torch.float32 and same_weight == weight
    torch.testing.assert_close(rough, exact, atol=0, rtol=0.01)
    rough.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in task.parameters())


def test_parts_are_all_that_learns_and_fit_the_engine() -> None:
    task = build()
    parts = task.parts()
    assert set(parts) == {"encoder", "heads"}
    assert {name for named in parts.values() for name, _ in named} == dict(task.named_parameters()).keys()
    trained = freeze_and_select(task, {"encoder": 0.0, "heads": 1e-3})
    assert set(trained) == {"heads"} and not any(p.requires_grad for p in task.encoder.parameters())


def test_learns_more_than_the_frequencies_of_labels() -> None:
    """Each utterance is one sound throughout: what is masked follows from what is not."""
    task = build(width=48, layers=1, codebooks=2, entries=16).train()
    config = TrainConfig(steps=40, batch_size=8, learning_rates={"encoder": 4e-3, "heads": 4e-3})
    optimizer = build_optimizer(task, freeze_and_select(task, config.learning_rates), config)
    generator = torch.Generator().manual_seed(0)
    sounds = torch.randn(12, 1, 80, generator=generator)
    for _ in range(config.steps):
        chosen = sounds[torch.randint(12, (8,), generator=generator)]
        features = chosen + 0.1 * torch.randn(8, 120, 80, generator=generator)
        loss, weight = task.loss(SpeechBatch(features, torch.full((8,), 120)))
        optimizer.zero_grad()
        loss.backward()
        scale_and_clip(optimizer, weight=weight, clip_norm=1.0)
        optimizer.step()
    values = task.log_values()
    assert values["nats_below_unigram"] > 0.5 and values["accuracy_above_unigram"] > 0.3


def test_statistics_of_known_labels() -> None:
    statistics = LabelStatistics(codebooks=2, entries=8)
    assert statistics.values() == {}
    labels = torch.tensor([[i % 4, 5 if i < 12 else 6] for i in range(16)])
    statistics.count(labels)
    statistics.latest = (torch.tensor(16 * 0.5), torch.tensor([12, 16]), 16)
    values = statistics.values()
    assert values["code_usage.0"] == 0.5 and values["code_usage.1"] == 0.25
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert values["code_perplexity.0"] == pytest.approx(4)
    assert values["code_perplexity.1"] == pytest.approx(math.exp(entropy))
    assert values["accuracy"] == pytest.approx(0.875)
    assert values["accuracy_above_unigram"] == pytest.approx((0.75 - 0.25 + 1 - 0.75) / 2)
    assert values["nats_below_unigram"] == pytest.approx((math.log(4) + entropy) / 2 - 0.5)
    statistics.count(labels[:4])
    statistics.count(labels[12:])
    assert statistics.values()["code_perplexity.1"] > values["code_perplexity.1"]  # over the run, not the batch


def test_collapsed_labels_are_named_once_and_normalised_features_never(caplog: pytest.LogCaptureFixture) -> None:
    batch = speech((1200,) * 8)
    task = build(entries=512).train()
    with caplog.at_level(logging.WARNING):
        task.loss(batch)
        assert min(task.log_values()[f"code_usage.{c}"] for c in range(3)) > 0.3 and not caplog.records
        raw = SpeechBatch(1.5 * batch.padded - 8, batch.lengths)  # log-mel energies as they come
        task = build(entries=512).train()
        for _ in range(2):
            task.loss(raw)
            assert task.log_values()["code_usage.0"] < 0.1
    (record,) = caplog.records
    assert "normalised" in record.getMessage() and "codebook" in record.getMessage()


def test_evaluation_counts_no_labels() -> None:
    task = build().eval()
    with torch.no_grad():
        loss, weight = task.loss(speech())
    assert loss.isfinite() and weight and not task.statistics.counts_CV.any()


@pytest.mark.parametrize("change", [{"codebooks": 0}, {"mask_probability": 0.0}, {"noise": -1.0}, {"mask_span": 30}])
def test_bad_settings_are_a_user_error(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        build(**change)
