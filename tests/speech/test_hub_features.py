"""Features of other models' extractors: as many frames as foretold, masks that know frames and mel channels."""

from math import inf

import pytest
import torch

from multimodal.errors import UserError
from speech.augment import Augment
from speech.hub_features import HubFeatures
from tests.speech.test_encoder import build

FAMILIES = ("whisper", "wav2vec2-bert", "parakeet")
RATE = 16_000


def noise(samples: int, *, level: float = 0.1) -> torch.Tensor:
    return level * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


def features_of(family: str) -> HubFeatures:
    return build(family).features


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_frames_as_the_samples_foretell(family: str) -> None:
    features = features_of(family)
    lengths = [*range(1_600, 1_930, 7), *range(5_119, 5_122), 15_999, 16_000]
    assert [len(features(noise(n))) for n in lengths] == [features.output_length(n) for n in lengths]
    batch = features.collate([noise(n) for n in (1, 700, 1_600, 16_000)])
    assert batch.lengths.tolist() == [features.output_length(n) for n in (1, 700, 1_600, 16_000)]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_too_short_gets_silence_behind_it(family: str) -> None:
    features, short = features_of(family), noise(700)
    padded = torch.nn.functional.pad(short, (0, 900))
    assert torch.equal(features.collate([short]).padded[0], features(padded))
    assert features.frame_seconds == (0.02 if family == "wav2vec2-bert" else 0.01) and features.rate == RATE


def test_only_whisper_has_a_longest() -> None:
    assert [features_of(family).longest_seconds for family in FAMILIES] == [1.0, inf, inf]
    with pytest.raises(UserError, match=r"1\.50 s, the encoder hears at most 1 s at once .*transcribe cuts"):
        features_of("whisper").collate([noise(24_000)])


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_are_the_mean_of_their_mel_channel_inside_the_utterance(family: str) -> None:
    features = features_of(family)
    batch = features.collate([noise(n) for n in (16_000, 9_000)])
    spoiled = batch.padded.clone()
    spoiled[1, int(batch.lengths[1]) :] = 1e6  # padding is in no mean
    batch = type(batch)(spoiled, batch.lengths)
    settings = Augment(time_masks=1, time_mask_frames=21, time_mask_share=1, channel_masks=1, channel_mask_width=9)
    drawn = 0
    for seed in range(5):
        masked = features.masked(batch, settings=settings, rng=torch.Generator().manual_seed(seed))
        for before_MF, after_MF, length in zip(batch.padded, masked.padded, batch.lengths.tolist(), strict=True):
            # Frames of 10 ms by mel channels, however many are side by side.
            before_TC, after_TC = (x[:length].reshape(length * features.stack, -1) for x in (before_MF, after_MF))
            changed_TC = before_TC != after_TC
            times_T, bands_C = changed_TC.all(1), changed_TC.all(0)
            assert torch.equal(changed_TC, times_T[:, None] | bands_C[None]) and times_T.sum() <= 21
            assert bands_C.sum() <= 9 and before_TC.shape[1] == 80
            mean_TC = before_TC.mean(0).expand_as(before_TC)
            torch.testing.assert_close(after_TC[changed_TC], mean_TC[changed_TC], atol=1e-5, rtol=1e-4)
            drawn += int(bool(times_T.any())) + int(bool(bands_C.any()))
    assert drawn > 10, "too little was masked to show anything"


def test_no_mask_is_louder_than_a_quiet_utterance() -> None:
    features = features_of("whisper")
    batch = features.collate([noise(16_000, level=1e-4)])
    assert batch.padded.max() < 0, "0 would be louder"
    masked = features.masked(batch, settings=Augment(), rng=torch.Generator().manual_seed(1))
    assert masked.padded.max() <= batch.padded.max() and not torch.equal(masked.padded, batch.padded)
