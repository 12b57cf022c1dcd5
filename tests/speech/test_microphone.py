"""Recording with a made-up `sounddevice`: sound comes back as a file, and whatever is missing is said in one line."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from multimodal.errors import UserError
from speech.audio import read_audio
from speech.microphone import record
from tests.speech.made_speech import tone

RATE = 44_100


class PortAudioError(Exception):
    """As sounddevice names it."""


def microphone(waveform_S: torch.Tensor | None = None, *, broken: Exception | None = None) -> Any:
    """A `sounddevice` that hears a waveform, or breaks."""

    def query_devices(kind: str) -> dict[str, float]:
        assert kind == "input"
        if waveform_S is None:
            raise PortAudioError("Error querying device -1")
        return {"default_samplerate": float(RATE)}

    def rec(frames: int, *, samplerate: int, channels: int, dtype: str, blocking: bool) -> np.ndarray:
        assert (samplerate, channels, dtype, blocking) == (RATE, 1, "float32", True)
        if broken is not None or waveform_S is None:
            raise broken or AssertionError
        return waveform_S[:frames, None].numpy()

    return SimpleNamespace(query_devices=query_devices, rec=rec, PortAudioError=PortAudioError)


def test_what_is_heard_comes_back_as_a_sound_file(monkeypatch: pytest.MonkeyPatch) -> None:
    heard_S = tone(4, seconds=2, rate=RATE)
    monkeypatch.setitem(sys.modules, "sounddevice", microphone(heard_S))
    told: list[int] = []
    data = record(1.5, ready=lambda: told.append(1))
    assert told == [1] and torch.equal(read_audio(data, rate=RATE), heard_S[: round(1.5 * RATE)])


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "needs the package sounddevice"),
        (microphone(), "microphone: Error querying device -1; expected a microphone"),
        (microphone(tone(1), broken=PortAudioError("Device unavailable")), "microphone: Device unavailable; expected"),
        (microphone(tone(1), broken=ValueError("no such device")), "microphone: no such device; expected"),
    ],
)
def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, module: Any, message: str) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    with pytest.raises(UserError, match=message):
        record(1)


def test_a_package_without_its_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(UserError, match="PortAudio library not found; expected PortAudio"):
        record(1)
    with pytest.raises(UserError, match="a recording of 0 s"):
        record(0)
