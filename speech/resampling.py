"""From one sampling rate to another: a whole waveform at once, or a stream of blocks with the same result.

The converter is torchaudio's windowed sinc. Its filter for a ratio of new / old samples has new x old taps, so that a
ratio without small numbers (44,101 Hz to 16 kHz) would need gigabytes: such a rate is taken as the nearest one that has
them, some parts in 100,000 away, as far as the clocks of cheap sound cards are. All usual rates are exact.

Legend: S samples.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import torch
import torchaudio
from torch import Tensor

MAX_TAPS = 4_000_000
"""Largest filter bank (16 MB); that of 44.1 to 16 kHz has 79,000."""


@functools.lru_cache(maxsize=16)
def _converter(source_rate: int, rate: int) -> torchaudio.transforms.Resample:
    """The filter for the ratio in lowest terms: its `orig_freq` old samples become `new_freq` new ones."""
    largest = max(1, math.isqrt(MAX_TAPS * source_rate // rate))
    ratio = Fraction(rate, source_rate).limit_denominator(largest)
    # The taps are computed in float64: torchaudio's default is 5e-5 away from them at 11,025 Hz.
    return torchaudio.transforms.Resample(ratio.denominator, ratio.numerator, dtype=torch.float64).float()


def resample(waveform_S: Tensor, *, source_rate: int, rate: int) -> Tensor:
    """A waveform [S] (float32, CPU) of `source_rate` samples a second -> [ceil(S * rate / source_rate)]."""
    return _converter(source_rate, rate)(waveform_S)


def resample_blocks(blocks: Iterable[Tensor], *, source_rate: int, rate: int) -> Iterator[Tensor]:
    """Resample a stream: the results joined are `resample` of the blocks joined, whatever the blocks' sizes.

    An output sample depends on `width` input samples on either side. So the last input is kept as context, and only
    those outputs are given out that no later input can change; memory is a block and two contexts.
    """
    converter = _converter(source_rate, rate)
    old, new = converter.orig_freq, converter.new_freq
    if old == new:
        yield from blocks
        return
    past = -(-converter.width // old) * old  # context in whole periods of `old`, so that outputs keep their phase
    kept_S = torch.zeros(past)  # before the first sample there is silence, as in `resample`
    for block_S in blocks:
        kept_S = torch.cat([kept_S, block_S])
        ready = (len(kept_S) - past - converter.width) // old * old
        if ready > 0:
            out_S = converter(kept_S[: past + ready + converter.width])
            yield out_S[past // old * new : (past + ready) // old * new]
            kept_S = kept_S[ready:]
    if len(kept_S) > past:
        yield converter(kept_S)[past // old * new :]
