"""Log-mel features: torchaudio's numbers, an utterance's own numbers in any batch, statistics over what was said."""

import copy
import math

import pytest
import torch
import torchaudio

from multimodal.errors import UserError
from speech.features import FLOOR, LogMel, LogMelConfig


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def fitted() -> LogMel:
    log_mel = LogMel()
    log_mel.fit_statistics([noise(16_000, seed) * 10.0**-seed for seed in range(3)])
    return log_mel


def features_of(log_mel: LogMel, waveform: torch.Tensor) -> torch.Tensor:
    return log_mel(waveform[None], torch.tensor([len(waveform)]))[0][0]


def test_equal_to_torchaudio() -> None:
    waveform = noise(16_000)
    mel = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80, center=False, norm=None, mel_scale="htk"
    )
    # Its window stands in the middle of the transform's 512 samples; ours at their start.
    expected = torch.log(mel(torch.nn.functional.pad(waveform, (56, 0))) + FLOOR).T
    got = features_of(LogMel(), waveform)
    assert len(expected) == 1 + (16_000 + 56 - 512) // 160
    torch.testing.assert_close(got[: len(expected)], expected, atol=1e-4, rtol=0)


def test_a_tone_rings_in_its_channel() -> None:
    log_mel = LogMel()
    for hertz in (300, 1_000, 4_000):
        wave = torch.sin(2 * math.pi * hertz * torch.arange(8_000) / 16_000)
        loudest = int(features_of(log_mel, wave)[:-3].mean(0).argmax())
        centre = log_mel.filters_FC[:, loudest].argmax() * 16_000 / 512
        assert abs(float(centre) - hertz) < 0.07 * hertz + 32


@pytest.mark.parametrize("garbage", [0.0, 1e3, math.nan])
def test_a_batch_is_no_leak(garbage: float) -> None:
    log_mel = fitted()
    waveforms = [noise(n, n) for n in (1, 159, 160, 161, 400, 5_000, 16_001)]
    lengths = torch.tensor([len(w) for w in waveforms])
    batch = torch.full((len(waveforms), 20_000), garbage)
    for row, waveform in zip(batch, waveforms, strict=True):
        row[: len(waveform)] = waveform
    features, frames = log_mel(batch, lengths)
    assert features.shape == (len(waveforms), log_mel.output_length(20_000), 80)
    for row, count, waveform in zip(features, frames.tolist(), waveforms, strict=True):
        alone = features_of(log_mel, waveform)
        assert len(alone) == count == math.ceil(len(waveform) / 160)
        torch.testing.assert_close(row[:count], alone, atol=1e-5, rtol=0)
        assert bool((row[count:] == 0).all())


def test_lengths() -> None:
    log_mel = LogMel()
    assert log_mel.output_length(60 * 16_000) == 6_000
    assert [log_mel.output_length(n) for n in (0, 1, 160, 161)] == [0, 1, 1, 2]
    assert log_mel.output_length(torch.tensor([0, 1, 160, 161])).tolist() == [0, 1, 1, 2]


def test_the_last_samples_count() -> None:
    log_mel, waveform = LogMel(), torch.zeros(1_000)
    before = features_of(log_mel, waveform)
    waveform[-1] = 1
    assert not torch.equal(features_of(log_mel, waveform)[-3:], before[-3:])


def test_float32_under_autocast_and_in_a_cast_model() -> None:
    log_mel, waveform = fitted(), noise(8_000)
    expected = features_of(log_mel, waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = features_of(log_mel, waveform)
    cast = torch.nn.Sequential(copy.deepcopy(log_mel), torch.nn.Linear(80, 2)).to(torch.bfloat16)
    in_cast = features_of(cast[0], waveform)  # pyright: ignore[reportArgumentType]
    assert under_autocast.dtype == in_cast.dtype == torch.float32
    assert torch.equal(under_autocast, expected) and torch.equal(in_cast, expected)
    assert next(cast[1].parameters()).dtype == torch.bfloat16
    rounded = features_of(log_mel, waveform.bfloat16())
    assert torch.equal(rounded, features_of(log_mel, waveform.bfloat16().float()))


def test_statistics_are_those_of_the_valid_frames_and_are_saved() -> None:
    log_mel = LogMel()
    waveforms = [noise(n, n) * n / 8_000 for n in (1_000, 3_333, 20_000)]
    frames = torch.cat([features_of(log_mel, w) for w in waveforms]).double()
    log_mel.fit_statistics(w for w in [*waveforms, torch.zeros(0)])
    torch.testing.assert_close(log_mel.mean_C, frames.mean(0).float(), atol=1e-4, rtol=0)
    torch.testing.assert_close(log_mel.std_C, frames.std(0, correction=0).float(), atol=1e-4, rtol=0)
    normal = torch.cat([features_of(log_mel, w) for w in waveforms])
    assert normal.mean(0).abs().max() < 1e-4 and (normal.std(0) - 1).abs().max() < 1e-2
    loaded = LogMel()
    loaded.load_state_dict(log_mel.state_dict())
    assert set(log_mel.state_dict()) == {"mean_C", "std_C"}
    assert torch.equal(features_of(loaded, waveforms[0]), features_of(log_mel, waveforms[0]))


def test_statistics_of_silence_are_finite_and_those_of_nothing_refused() -> None:
    log_mel = LogMel()
    log_mel.fit_statistics([torch.zeros(1_600)])
    assert bool(torch.isfinite(features_of(log_mel, noise(1_600))).all())
    for nothing in ([], [torch.zeros(0)]):
        with pytest.raises(UserError, match="at least one utterance"):
            log_mel.fit_statistics(nothing)


@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
@pytest.mark.parametrize("wrong", [{"hop": 0}, {"rate": 0}, {"channels": 0}, {"window": 100}, {"channels": 400}])
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="speech features"):
        LogMel(LogMelConfig(**wrong))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_as_on_the_cpu() -> None:
    log_mel, waveform = fitted(), noise(8_000)
    expected = features_of(log_mel, waveform)
    features, frames = log_mel.cuda()(waveform[None].cuda(), torch.tensor([8_000]).cuda())
    assert features.is_cuda and frames.is_cuda
    torch.testing.assert_close(features[0].cpu(), expected, atol=1e-3, rtol=0)
