"""More speech out of the same recordings: other speeds, added noise, and SpecAugment masks that know the lengths.

All randomness comes from a generator that is passed in, so that a run that goes on from a checkpoint draws the same.
Masks lie inside an utterance and never in its padding, and are not left on when a model is used.

Legend: B batch, S samples, T frames, C mel channels, M masks.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from multimodal.errors import UserError
from speech.resampling import resample

Randomness = random.Random | torch.Generator
"""A `random.Random`, such as a sample's own, or a torch generator on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to the speech of a training run."""

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    """One of them is drawn for each utterance; speed and pitch change together, as on a tape."""
    noise_chance: float = 0.3
    """Share of the utterances that get noise."""
    noise_folder: Path | None = None
    """Recordings of noise, one of which is drawn each time; None: white noise."""
    noise_snr_db: tuple[float, float] = (10.0, 40.0)
    """Range of the signal-to-noise ratio, drawn evenly in decibels."""
    time_masks: int = 2
    time_mask_frames: int = 40
    """Longest time mask, in frames of 10 ms."""
    time_mask_share: float = 0.2
    """All time masks together cover at most this share of an utterance."""
    channel_masks: int = 2
    channel_mask_width: int = 15
    """Widest mask over mel channels."""

    def __post_init__(self) -> None:
        low, high = self.noise_snr_db
        sizes = ("time_masks", "time_mask_frames", "channel_masks", "channel_mask_width")
        wrong = {
            f"speeds {self.speeds}, expected one or more from 0.5 to 2": (
                not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds)
            ),
            f"noise_chance {self.noise_chance}, expected 0 to 1": not 0 <= self.noise_chance <= 1,
            f"noise_snr_db {self.noise_snr_db}, expected a rising range within -20 to 100": (
                not -20 <= low <= high <= 100
            ),
            f"time_mask_share {self.time_mask_share}, expected 0 to 1": not 0 <= self.time_mask_share <= 1,
        } | {f"{name} {getattr(self, name)}, expected 0 or more": getattr(self, name) < 0 for name in sizes}
        for what, holds in wrong.items():
            if holds:
                raise UserError(f"speech augmentation: {what}")


def augment_waveform(
    waveform_S: Tensor, *, settings: Augment, rng: Randomness, noises: Sequence[Tensor] = ()
) -> Tensor:
    """One utterance [S] at a drawn speed and, by chance, with noise: one of `noises` ([S] each) or white noise."""
    generator = _generator(rng)
    speed, chance, snr, which = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    waveform_S = change_speed(waveform_S, settings.speeds[int(speed * len(settings.speeds))])
    if chance >= settings.noise_chance:
        return waveform_S
    low, high = settings.noise_snr_db
    noise_S = noises[int(which * len(noises))] if noises else None
    return add_noise(waveform_S, snr_db=low + (high - low) * snr, noise_S=noise_S, rng=generator)


def change_speed(waveform_S: Tensor, speed: float) -> Tensor:
    """`speed` times as fast, and as much higher: resampled, and played at the old rate. [S] -> about [S / speed]"""
    return resample(waveform_S, source_rate=round(speed * 1000), rate=1000)


def add_noise(waveform_S: Tensor, *, snr_db: float, rng: Randomness, noise_S: Tensor | None = None) -> Tensor:
    """The sum with noise at a ratio of powers of `snr_db`, each taken over its whole length.

    Args:
        waveform_S: the speech; silence stays silence.
        noise_S: begins at a drawn place and starts over where it ends; None: white noise.
    """
    generator, samples = _generator(rng), len(waveform_S)
    if noise_S is None:
        noise_S = torch.randn(samples, generator=generator)
    else:
        first = int(torch.randint(len(noise_S), (1,), generator=generator))
        noise_S = noise_S[(torch.arange(samples) + first) % len(noise_S)]
    speech_power, noise_power = waveform_S.square().mean(), noise_S.square().mean()
    if not bool(noise_power > 0):
        return waveform_S
    return waveform_S + noise_S * (speech_power / noise_power * 10 ** (-snr_db / 10)).sqrt()


def mask_features(
    features_BTC: Tensor, frames_B: Tensor, *, settings: Augment, rng: Randomness, fill_BC: Tensor | None = None
) -> Tensor:
    """SpecAugment: stretches of time and bands of channels set to their mean; a new tensor.

    Args:
        features_BTC: features, on any device.
        frames_B: int64, valid frames of each utterance; masks lie within them.
        fill_BC: what is set; None: 0, the mean of normalised features.
    """
    generator = _generator(rng)
    channels_B = torch.full_like(frames_B, features_BTC.shape[2])
    widest_B = (frames_B * settings.time_mask_share / max(1, settings.time_masks)).long()
    widest_B = widest_B.clamp(max=settings.time_mask_frames)
    times_BT = _spans(features_BTC.shape[1], frames_B, widest_B, settings.time_masks, generator)
    widest_B = channels_B.clamp(max=settings.channel_mask_width)
    bands_BC = _spans(features_BTC.shape[2], channels_B, widest_B, settings.channel_masks, generator)
    masked_BTC = times_BT[:, :, None] | bands_BC[:, None, :]
    if fill_BC is None:
        return features_BTC.masked_fill(masked_BTC, 0.0)
    return torch.where(masked_BTC, fill_BC[:, None, :], features_BTC)


def _spans(size: int, lengths_B: Tensor, widest_B: Tensor, masks: int, generator: torch.Generator) -> Tensor:
    """bool [B, size]: True in `masks` spans, each of a drawn width 0..widest at a drawn place before the length."""
    drawn_2BM = torch.rand(2, len(lengths_B), masks, generator=generator, dtype=torch.float64).to(lengths_B.device)
    width_BM = (drawn_2BM[0] * (widest_B[:, None] + 1)).long()
    first_BM = (drawn_2BM[1] * (lengths_B[:, None] - width_BM + 1)).long()
    place = torch.arange(size, device=lengths_B.device)
    return ((place >= first_BM[..., None]) & (place < (first_BM + width_BM)[..., None])).any(1)


def _generator(rng: Randomness) -> torch.Generator:
    return torch.Generator().manual_seed(rng.getrandbits(63)) if isinstance(rng, random.Random) else rng
