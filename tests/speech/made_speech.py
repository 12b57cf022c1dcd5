"""Made-up recordings on disk: each digit a tone of its own, in the layout of FSDD."""

import math
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from torch import Tensor

RATE = 8_000


def tone(digit: int, *, seconds: float = 0.3, rate: int = RATE) -> Tensor:
    """A tone [S] that rises with the digit."""
    return 0.3 * torch.sin(2 * math.pi * (300 + 200 * digit) * torch.arange(round(seconds * rate)) / rate)


def save(path: Path, waveform_S: Tensor, *, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform_S.numpy(), rate)
    return path


def save_digits(
    folder: Path, *, speakers: Sequence[str] = ("ann", "bob"), takes: int = 10, digits: Sequence[int] = (1, 7)
) -> Path:
    """A folder like FSDD's."""
    for speaker in speakers:
        for take in range(takes):
            for digit in digits:
                waveform_S = tone(digit, seconds=0.3 + 0.01 * take)
                save(folder / "recordings" / f"{digit}_{speaker}_{take}.wav", waveform_S)
    return folder
