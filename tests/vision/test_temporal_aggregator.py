"""The temporal aggregator: clips and groups see only themselves, the order of the frames matters, padding does not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multimodal.errors import UserError
from vision.encoder import ImageFeatures
from vision.temporal_aggregator import ResamplerLayer, TemporalAggregator, TemporalAggregatorConfig

CONFIG = TemporalAggregatorConfig(group=4, latents=3, width=16, layers=2, heads=2)
WIDTH, OUT = 12, 10
FRAMES = (5, 1, 4, 9, 2)
TOKENS = (7, 3, 7, 2, 5)  # of a frame, for each clip


def build(**changes: Any) -> TemporalAggregator:
    torch.manual_seed(0)
    return TemporalAggregator(replace(CONFIG, **changes), feature_dim=WIDTH, out_dim=OUT).eval()


@pytest.fixture(params=["latents", "frames"])
def aggregator(request: pytest.FixtureRequest) -> TemporalAggregator:
    return build(start=request.param)


def clip(frames: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features [frames, tokens, C] and times [frames]."""
    generator = torch.Generator().manual_seed(seed + 100 * frames + tokens)
    features = torch.randn(frames, tokens, WIDTH, generator=generator)
    return features, (torch.arange(frames) + 0.5) / frames


def merge(aggregator: TemporalAggregator, *clips: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Merged tokens of each clip."""
    lengths = tuple(features.shape[1] for features, _ in clips for _ in range(len(features)))
    features = ImageFeatures(torch.cat([features.flatten(0, 1) for features, _ in clips]), lengths)
    merged = aggregator(
        features, frames=[len(features) for features, _ in clips], times=torch.cat([times for _, times in clips])
    )
    assert merged.lengths == tuple(aggregator.output_length(len(features)) for features, _ in clips)
    return list(merged.split())


def clips() -> list[tuple[Tensor, Tensor]]:
    return [clip(frames, tokens) for frames, tokens in zip(FRAMES, TOKENS, strict=True)]


def test_ragged_batch_equals_each_clip_alone(aggregator: TemporalAggregator) -> None:
    for together, one in zip(merge(aggregator, *clips()), clips(), strict=True):
        torch.testing.assert_close(together, merge(aggregator, one)[0], atol=1e-5, rtol=1e-5)


def test_a_broken_neighbour_changes_nothing(aggregator: TemporalAggregator) -> None:
    whole = clips()
    clean = merge(aggregator, *whole)
    broken = [(torch.full_like(f, torch.nan), t) if i in (0, 3) else (f, t) for i, (f, t) in enumerate(whole)]
    for i, (tokens, expected) in enumerate(zip(merge(aggregator, *broken), clean, strict=True)):
        assert torch.isnan(tokens).all() if i in (0, 3) else torch.equal(tokens, expected)


def test_frames_with_different_numbers_of_tokens_in_one_clip() -> None:
    aggregator = build()
    one, other = torch.randn(1, 3, WIDTH), torch.randn(1, 6, WIDTH)
    tokens = torch.cat([one[0], other[0]])
    merged = aggregator(ImageFeatures(tokens, (3, 6)), frames=[2], times=torch.tensor([0.2, 0.2]))
    same = aggregator(ImageFeatures(tokens, (9,)), frames=[1], times=torch.tensor([0.2]))
    torch.testing.assert_close(merged.tokens, same.tokens)


def test_groups_are_consecutive_frames_and_the_last_one_may_be_incomplete(aggregator: TemporalAggregator) -> None:
    features, times = clip(9, 5)
    parts = [merge(aggregator, (features[i : i + 4], times[i : i + 4]))[0] for i in (0, 4, 8)]
    torch.testing.assert_close(merge(aggregator, (features, times))[0], torch.cat(parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("frames", "groups"), [(1, 1), (3, 1), (4, 1), (5, 2), (8, 2), (9, 3), (64, 16)])
def test_output_length(frames: int, groups: int) -> None:
    assert build().output_length(frames) == groups * CONFIG.latents


def test_the_order_of_the_frames_matters_and_only_through_their_times(aggregator: TemporalAggregator) -> None:
    features, times = clip(4, 5)
    forwards = merge(aggregator, (features, times))[0]
    backwards = merge(aggregator, (features.flip(0), times))[0]
    assert (forwards - backwards).norm() > 0.1 * forwards.norm()
    # The same frames at the same times, handed over in another order, are the same clip.
    torch.testing.assert_close(merge(aggregator, (features.flip(0), times.flip(0)))[0], forwards, atol=1e-5, rtol=1e-5)
    # Without times nobody could tell.
    still = torch.zeros_like(times)
    blind = [merge(aggregator, (f, still))[0] for f in (features, features.flip(0))]
    torch.testing.assert_close(*blind, atol=1e-5, rtol=1e-5)


def test_weights_and_times_carry_over_to_other_numbers_of_frames_and_other_groups() -> None:
    small, large = build(group=2), build(group=8)
    large.load_state_dict(small.state_dict())
    features, times = clip(8, 5)
    assert merge(large, (features, times))[0].shape == (CONFIG.latents, OUT)
    # A moment has the same signal whatever the number of frames, and near moments have near signals.
    signal = small.time(torch.linspace(0, 1, 65))
    assert torch.equal(signal[::4], large.time(torch.linspace(0, 1, 17)))
    distance = torch.cdist(signal, signal)
    assert distance.diagonal(1).max() < distance[0, 8:].min()
    assert distance[~torch.eye(65, dtype=torch.bool)].min() > 0.01


def test_fitted_features_have_no_common_part_left() -> None:
    """Mean 0 and deviation 1 in every channel, however the features come in chunks; a still channel stays finite."""
    features = 3 + torch.arange(1, WIDTH + 1) * torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(0))
    features[:, 2] = 7.0
    statistics = build().norm_in
    assert torch.equal(statistics(features), features), "the identity before"
    statistics.fit(features.split(61))
    found = statistics(features)
    torch.testing.assert_close(found.mean(0), torch.zeros(WIDTH), atol=1e-4, rtol=0)
    moving = torch.arange(WIDTH) != 2
    torch.testing.assert_close(found.std(0, correction=0)[moving], torch.ones(WIDTH - 1), atol=1e-4, rtol=0)
    assert found[:, 2].abs().max() < 1e-2
    with pytest.raises(ValueError, match="no features"):
        statistics.fit([])


def test_equals_the_definition_written_out() -> None:
    aggregator = build()
    features, times = clip(6, 5)
    expected = []
    for start in (0, 4):
        group = [
            (frame, time) for frame, time in zip(features[start : start + 4], times[start : start + 4], strict=True)
        ]
        tokens = torch.cat([aggregator.proj_in(aggregator.norm_in(frame)) + aggregator.time(t) for frame, t in group])
        z = aggregator.latents_QD
        for layer in aggregator.layers:
            assert isinstance(layer, ResamplerLayer)
            queries = layer.q(layer.norm_latents(z)).chunk(layer.heads, dim=-1)
            seen = torch.cat([layer.norm_tokens(tokens), layer.norm_latents(z)])
            keys, values = (part.chunk(layer.heads, dim=-1) for part in layer.kv(seen).chunk(2, dim=-1))
            read = [
                torch.softmax(q @ k.T / k.shape[-1] ** 0.5, dim=-1) @ v
                for q, k, v in zip(queries, keys, values, strict=True)
            ]
            z = z + layer.out(torch.cat(read, dim=-1))
            z = z + layer.ffn(layer.norm_ffn(z))
        expected.append(aggregator.proj_out(aggregator.norm_out(z)))
    torch.testing.assert_close(merge(aggregator, (features, times))[0], torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_what_comes_out_depends_on_the_clip_from_the_start_and_gradients_reach_every_weight(
    aggregator: TemporalAggregator,
) -> None:
    first, second = (merge(aggregator, clip(4, 5, seed))[0] for seed in (1, 2))
    assert (first - second).norm() > 0.2 * first.norm()  # not drowned by the latents themselves
    torch.cat(merge(aggregator, *clips())).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in aggregator.parameters())


def test_latents_may_start_from_the_mean_of_the_frames_place_by_place() -> None:
    """Begun as a projector, what comes out is that of the mean; a place beyond a frame's tokens adds nothing."""
    aggregator = build(start="frames")
    projector = nn.Linear(WIDTH, OUT)
    aggregator.begin_as_projector(projector)
    for tokens in (2, 3, 7):
        features, times = clip(6, tokens)
        means = [features[:4].mean(0), features[4:].mean(0)]
        padded = [torch.cat([mean, torch.zeros(3, WIDTH)])[:3] for mean in means]
        torch.testing.assert_close(merge(aggregator, (features, times))[0], projector(torch.cat(padded)))
    with pytest.raises(ValueError, match="start='frames'"):
        build().begin_as_projector(projector)


def test_latents_that_start_from_frames_read_on_from_there() -> None:
    """The same as latents alone that have been given the means by hand."""
    started, plain = build(start="frames"), build()
    plain.load_state_dict(started.state_dict(), strict=False)
    features, times = clip(4, 5)
    assert started.proj_mean is not None
    nn.init.zeros_(started.proj_mean.weight)
    nn.init.zeros_(started.proj_mean.bias)
    tokens = plain.proj_in(features) + plain.time(times)[:, None]
    with torch.no_grad():
        plain.latents_QD += tokens.mean(0)[: CONFIG.latents]
    torch.testing.assert_close(merge(started, (features, times)), merge(plain, (features, times)))


def test_features_of_another_type_are_taken() -> None:
    aggregator = build()
    features, times = clip(4, 5)
    merged = aggregator(ImageFeatures(features.flatten(0, 1).bfloat16(), (5,) * 4), frames=[4], times=times)
    torch.testing.assert_close(merged.tokens, merge(aggregator, (features, times))[0], atol=0.1, rtol=0.1)


def test_what_does_not_fit_is_refused() -> None:
    for wrong in ({"group": 0}, {"latents": 0}, {"heads": 3}, {"ffn_ratio": 0.0}, {"time_frequencies": 0}):
        with pytest.raises(UserError, match="temporal aggregator"):
            replace(CONFIG, **wrong)
    features, times = clip(4, 5)
    tokens = ImageFeatures(features.flatten(0, 1), (5,) * 4)
    for frames, some in (([4, 0], times), ([3], times), ([4], times[:3]), ([], times[:0])):
        with pytest.raises(ValueError, match="expected one of each for every frame"):
            build()(tokens, frames=frames, times=some)
