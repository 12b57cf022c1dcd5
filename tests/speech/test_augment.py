"""Augmentation: within the settings, inside the utterances, and the same again from the same generator."""

import math
import random

import pytest
import torch
import torchaudio

from multimodal.errors import UserError
from speech.augment import Augment, add_noise, augment_waveform, change_speed, mask_features

FRAMES = torch.tensor([1, 7, 60, 300])


def masked(settings: Augment, seed: int = 0) -> torch.Tensor:
    return mask_features(torch.ones(4, 320, 80), FRAMES, settings=settings, rng=random.Random(seed)) == 0


def runs(mask: torch.Tensor) -> int:
    """How many separate stretches of True."""
    return int((torch.nn.functional.pad(mask.int(), (1, 1)).diff() == 1).sum())


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_time_masks_stay_in_the_utterance_and_in_their_share(share: float) -> None:
    settings = Augment(time_masks=3, time_mask_frames=50, time_mask_share=share, channel_masks=0)
    most = torch.zeros(4)
    for seed in range(30):
        rows = masked(settings, seed)
        assert bool((rows.all(2) == rows.any(2)).all())  # all channels of a frame
        for row, length in zip(rows[:, :, 0], FRAMES.tolist(), strict=True):
            assert not row[length:].any()
            assert int(row.sum()) <= share * length and runs(row) <= 3
        most = torch.maximum(most, rows[:, :, 0].sum(1))
    bound = torch.tensor([min(50, int(share * n / 3)) for n in FRAMES.tolist()])
    assert bool((most >= bound).all())  # the widest mask is drawn


def test_channel_masks_have_their_width() -> None:
    settings = Augment(time_masks=0, channel_masks=2, channel_mask_width=15)
    widths = []
    for seed in range(30):
        rows = masked(settings, seed)
        assert bool((rows.all(1) == rows.any(1)).all())
        assert all(runs(row) <= 2 for row in rows[:, 0])
        widths += rows[:, 0].sum(1).tolist()
    assert max(widths) > 15 and max(widths) <= 30 and min(widths) < 8


def test_masks_reach_the_edges_evenly() -> None:
    settings = Augment(time_masks=1, time_mask_frames=5, time_mask_share=1.0, channel_masks=0)
    frames = torch.full((4_000,), 20)
    rows = mask_features(torch.ones(4_000, 20, 1), frames, settings=settings, rng=random.Random(0)) == 0
    hits = rows[:, :, 0].float().mean(0)
    assert hits.min() > 0.03 and (hits[0] - hits[-1]).abs() < 0.02


def test_masks_leave_the_given_tensor_and_draw_again_from_the_same_seed() -> None:
    settings, given = Augment(), torch.randn(4, 320, 80)
    kept = given.clone()
    first = mask_features(given, FRAMES, settings=settings, rng=random.Random(1))
    assert torch.equal(given, kept)
    assert torch.equal(first, mask_features(given, FRAMES, settings=settings, rng=random.Random(1)))
    assert not torch.equal(first, mask_features(given, FRAMES, settings=settings, rng=random.Random(2)))
    generator = torch.Generator().manual_seed(5)
    state = generator.get_state()
    again = [mask_features(given, FRAMES, settings=settings, rng=generator) for _ in range(2)]
    assert not torch.equal(*again)
    generator.set_state(state)
    assert torch.equal(mask_features(given, FRAMES, settings=settings, rng=generator), again[0])


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1])
def test_speed_changes_length_and_pitch_as_torchaudio_does(speed: float) -> None:
    waveform = torch.sin(2 * math.pi * 440 * torch.arange(16_000) / 16_000)
    got = change_speed(waveform, speed)
    assert len(got) == math.ceil(16_000 / speed - 1e-9)
    assert torch.fft.rfft(got).abs().argmax() * 16_000 / len(got) == pytest.approx(440 * speed, abs=1.5)
    expected, _ = torchaudio.functional.speed(waveform, 16_000, speed)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("length", [None, 100, 50_000])
def test_noise_has_its_ratio(snr_db: float, length: int | None) -> None:
    waveform = torch.sin(torch.arange(8_000) / 9)
    noise = None if length is None else torch.randn(length)
    noisy = add_noise(waveform, snr_db=snr_db, rng=random.Random(0), noise_S=noise)
    added = noisy - waveform
    assert 10 * math.log10(waveform.square().mean() / added.square().mean()) == pytest.approx(snr_db, abs=1e-2)
    if noise is not None and length == 100:
        assert torch.allclose(added[:100], added[100:200], atol=1e-5)  # it starts over


def test_silence_stays_silence_and_silent_noise_changes_nothing() -> None:
    waveform = torch.randn(100)
    assert torch.equal(add_noise(torch.zeros(100), snr_db=10, rng=random.Random(0)), torch.zeros(100))
    assert torch.equal(add_noise(waveform, snr_db=10, rng=random.Random(0), noise_S=torch.zeros(9)), waveform)


def test_a_waveform_gets_every_speed_and_its_share_of_noise() -> None:
    waveform, settings = torch.sin(torch.arange(990) / 9), Augment(noise_chance=0.4)
    lengths, noisy, generator = set(), 0, random.Random(0)
    for _ in range(300):
        got = augment_waveform(waveform, settings=settings, rng=generator)
        lengths.add(len(got))
        noisy += len(got) == 990 and not torch.equal(got, waveform)
    assert lengths == {900, 990, 1_100}
    assert 0.25 < noisy / 100 < 0.55
    first, second = (
        augment_waveform(waveform, settings=settings, rng=random.Random(7), noises=[waveform]) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "wrong",
    [
        {"speeds": ()},
        {"speeds": (0.0,)},
        {"noise_chance": 1.5},
        {"noise_snr_db": (20.0, 10.0)},
        {"noise_snr_db": (math.nan, 10.0)},
        {"time_masks": -1},
        {"channel_mask_width": -1},
        {"time_mask_share": 1.1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"speech augmentation: {next(iter(wrong))} "):
        Augment(**wrong)  # pyright: ignore[reportArgumentType]
