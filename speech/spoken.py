"""Spoken sentences from eSpeak NG: speech of known words in some hundred voices, with nothing to download.

`espeakng-loader` brings the library and its voices as a Python package. It is free software under the GPL, hence an
optional extra that only data generators use.

The library keeps its state in globals: the place in the flutter table, the phase of the voice, random numbers. Neither
a new voice nor a new start resets all of that, so that the same words sound different the second time. Therefore it is
loaded for every utterance and unloaded after it, which resets everything and costs half a millisecond; voice and
dictionary take three. A lock keeps other threads out and makes `fork` wait, so that no worker process begins in the
middle of a sentence.
"""

import ctypes
import os
import threading
from _ctypes import dlclose
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from multimodal.errors import UserError
from speech.audio import SAMPLE_RATE
from speech.resampling import resample

LANGUAGES = {"English": "en-us", "German": "de", "French": "fr", "Spanish": "es", "Italian": "it"}
"""What eSpeak, and for all but English num2words, calls the languages that the project speaks."""
ENGLISH_ACCENTS = (
    "en-us",
    "en-us-nyc",
    "en",
    "en-gb-x-rp",
    "en-gb-scotland",
    "en-gb-x-gbclan",
    "en-gb-x-gbcwmd",
    "en-029",
)
# fmt: off
TRAIN_VARIANTS = (
    "Alicia", "Andrea", "Andy", "AnxiousAndy", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Marco",
    "Mario", "Michael", "Mike", "Reed", "RicishayMax", "RicishayMax2", "RicishayMax3", "Storm", "adam", "anika",
    "announcer", "antonio", "belinda", "benjamin", "caleb", "david", "ed", "edward", "edward2", "f1", "f2", "f4",
    "f5", "grandpa", "gustave", "ian", "iven2", "iven3", "iven4", "john", "kaukovalta", "klatt", "klatt2", "klatt3",
    "klatt4", "klatt5", "klatt6", "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m8", "marcelo", "max", "michel",
    "miguel", "mike2", "norbert", "pablo", "paul", "pedro", "rob", "robert", "sandro", "steph", "steph2", "steph3",
    "travis", "zac",
)
HELD_OUT_VARIANTS = (
    "Alex", "Annie", "Lee", "Nguyen", "aunty", "boris", "f3", "grandma", "m7", "quincy", "shelby", "victor",
)
# fmt: on
"""Speakers that never speak in training, in no accent; none varies one of the other list. Robots and whisperers are in
neither."""

_VOLUME = 50  # of 100, at which half of the voices clip
_SYNCHRONOUS, _DO_NOT_EXIT, _UTF8, _CHARACTERS = 2, 0x8000, 1, 1
_RATE, _VOLUME_PARAMETER, _PITCH = 1, 2, 3
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

_lock = threading.Lock()
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


@dataclass(frozen=True)
class Voice:
    """Who speaks: a language or accent of eSpeak ("en-us", "de") and a speaker's variant ("f3"); None: its own."""

    language: str = "en-us"
    variant: str | None = None

    def __str__(self) -> str:
        return f"{self.language}+{self.variant}" if self.variant else self.language


def english_voices(split: Literal["train", "held_out"]) -> tuple[Voice, ...]:
    """Every accent in every variant of a split, in a fixed order; no variant is in both splits."""
    variants = TRAIN_VARIANTS if split == "train" else HELD_OUT_VARIANTS
    return tuple(Voice(accent, variant) for variant in variants for accent in ENGLISH_ACCENTS)


def speak(
    text: str, *, voice: Voice | None = None, words_a_minute: int = 175, pitch: int = 50, rate: int = SAMPLE_RATE
) -> Tensor:
    """Synthesise a sentence as a waveform [S], float32 within -1..1. The same arguments give the same samples.

    Args:
        text: digits and abbreviations are read out by the rules of the voice's language.
        words_a_minute: 80 to 450.
        pitch: 0 (low) to 99.
        rate: samples a second of the result; eSpeak itself works at 22,050.

    Raises:
        UserError: eSpeak NG is not installed, knows no such voice, or finds nothing to say in the text.

    Example:
        >>> speak("Seven blue books.", voice=Voice("en-us", "f3")).shape[0] > 8_000
        True
    """
    voice = voice or Voice()
    if not 80 <= words_a_minute <= 450 or not 0 <= pitch <= 99:
        raise UserError(f"speech of {words_a_minute} words a minute, pitch {pitch}; expected 80 to 450 and 0 to 99")
    library, data = _installed()
    if voice.variant is not None and voice.variant not in os.listdir(data / "voices" / "!v"):
        raise UserError(f"voice {voice}: eSpeak NG knows no variant {voice.variant!r}")  # it would take its own
    with _lock:
        samples, source_rate = _synthesise(library, data, text, voice, words_a_minute, pitch)
    if not samples.any():
        raise UserError(f"nothing to say in {text!r}; expected words")
    waveform_S = torch.from_numpy(samples.astype(np.float32) / 32768)
    return resample(waveform_S, source_rate=source_rate, rate=rate).clamp(-1, 1)


@lru_cache
def _installed() -> tuple[Path, Path]:
    """The library and its data."""
    try:
        import espeakng_loader
    except ImportError:
        raise UserError("eSpeak NG is not installed; spoken sentences need it: pip install espeakng-loader") from None
    return Path(espeakng_loader.get_library_path()), Path(espeakng_loader.get_data_path())


def _synthesise(
    path: Path, data: Path, text: str, voice: Voice, words_a_minute: int, pitch: int
) -> tuple[np.ndarray, int]:
    """16-bit samples and their rate."""
    parts: list[bytes] = []

    @_Callback
    def keep(samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            parts.append(ctypes.string_at(samples, 2 * count))
        return 0

    library = ctypes.CDLL(str(path))
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DO_NOT_EXIT)
        if rate < 1:
            raise UserError(f"eSpeak NG does not start with the voices in {data} (status {rate})")
        # Two sources of random numbers: its own, seeded by the clock, and for some voices that of the C library.
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)
        library.espeak_SetSynthCallback(keep)
        if library.espeak_SetVoiceByName(str(voice).encode()):
            raise UserError(f"voice {voice}: eSpeak NG knows no language {voice.language!r}")
        for parameter, value in ((_RATE, words_a_minute), (_VOLUME_PARAMETER, _VOLUME), (_PITCH, pitch)):
            library.espeak_SetParameter(parameter, value, 0)
        spoken = text.replace("\0", " ").encode() + b"\0"
        if library.espeak_Synth(spoken, len(spoken), 0, _CHARACTERS, 0, _UTF8, None, None):
            raise UserError(f"eSpeak NG cannot speak {text!r}")
        library.espeak_Terminate()
    finally:
        dlclose(library._handle)
    return np.frombuffer(b"".join(parts), np.int16), rate
