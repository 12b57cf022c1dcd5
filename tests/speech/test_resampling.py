"""One converter for whole waveforms and for streams: they agree to rounding, at every ratio."""

import math

import pytest
import torch
import torchaudio

from speech.resampling import resample, resample_blocks

RATES = [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000]


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("source_rate", RATES)
def test_usual_rates_equal_torchaudio(source_rate: int) -> None:
    waveform = noise(source_rate // 4 + 7)
    expected = torchaudio.functional.resample(waveform.double(), source_rate, 16_000).float()
    got = resample(waveform, source_rate=source_rate, rate=16_000)
    assert len(got) == math.ceil(len(waveform) * 16_000 / source_rate)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("source_rate", [8_000, 22_050, 44_100, 44_101, 48_000, 96_000])
@pytest.mark.parametrize("sizes", [[1] * 40, [3, 5000, 1, 441, 2], [7, 160] * 20, [6001]])
def test_blocks_joined_equal_the_whole(source_rate: int, sizes: list[int]) -> None:
    waveform = noise(sum(sizes))
    whole = resample(waveform, source_rate=source_rate, rate=16_000)
    blocks = list(resample_blocks(waveform.split(sizes), source_rate=source_rate, rate=16_000))
    torch.testing.assert_close(torch.cat(blocks), whole, atol=1e-6, rtol=0)


def test_a_stream_keeps_only_what_it_needs() -> None:
    given = 0

    def endless() -> object:
        nonlocal given
        while True:
            given += 1
            yield noise(4_410, seed=given)

    stream = resample_blocks(endless(), source_rate=44_100, rate=16_000)  # pyright: ignore[reportArgumentType]
    out = sum(len(next(stream)) for _ in range(20))
    assert given == 20
    assert 0 <= 20 * 1_600 - out < 480  # behind by the context alone


@pytest.mark.parametrize("source_rate", [1_001, 8_001, 44_101, 47_999, 192_001, 767_999])
def test_odd_rates_need_little_memory_and_keep_time(source_rate: int) -> None:
    waveform = noise(source_rate)
    got = resample(waveform, source_rate=source_rate, rate=16_000)
    assert abs(len(got) - 16_000) <= 16_000 * 4e-4


def test_a_tone_keeps_its_pitch_and_what_lies_too_high_is_gone() -> None:
    time = torch.arange(44_100) / 44_100
    low, high = (torch.sin(2 * math.pi * hertz * time) for hertz in (1_000, 10_000))
    spectrum = torch.fft.rfft(resample(low + high, source_rate=44_100, rate=16_000)).abs()
    assert int(spectrum.argmax()) == 1_000
    assert spectrum[7_500:].max() < 0.01 * spectrum[1_000]
