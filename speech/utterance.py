"""Utterances: a sound that can be had at any time, and what it says.

Sounds are named, not held: a data set of hours is a list of small objects, and each waveform is made when its turn
comes, always the same.

Legend: S samples.
"""

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

import torch
from torch import Tensor

from multimodal.data.broken import BrokenSamples, OnError
from multimodal.data.kept import Kept
from multimodal.errors import UserError
from multimodal.files import find_files, open_container
from speech.audio import AUDIO_SUFFIXES, read_audio, read_blocks
from speech.augment import Augment, augment_waveform

LONGEST_SECONDS = 60.0
"""An utterance is no longer (Llama 3 paper, section 8.1 / spec B1, B2.1)."""
HEADER_SLACK = 1.0
"""Seconds by which a header may overstate what is there."""
NOISE_SECONDS = 60.0
"""Of each recording of noise so much is kept in memory."""

SpeechTask = Literal["transcribe", "translate", "dialogue"]


class Sound(Protocol):
    """A waveform that is not there yet."""

    @property
    def seconds(self) -> float:
        """About how long it is, without making it."""
        ...

    def waveform(self, rate: int) -> Tensor:
        """Mono samples [S], float32, `rate` a second; the same each time.

        Raises:
            UserError: it cannot be read or made.
        """
        ...


@dataclass(frozen=True)
class FileSound:
    """The sound of a file."""

    path: Path

    @cached_property
    def _said(self) -> float:
        return _header_seconds(lambda: self.path.open("rb"))

    @property
    def seconds(self) -> float:
        """As its header or its packets say, which are read once; 0 for a file that cannot be read."""
        return self._said

    def waveform(self, rate: int) -> Tensor:
        return read_audio(self.path, rate=rate)

    def part(self, rate: int, *, start: int, samples: int) -> Tensor:
        """So many samples [S] of the waveform from `start` on, fewer at its end, in the memory of some blocks.

        Raises:
            UserError: as `waveform`, or it ends before.
        """
        parts, passed = [], 0
        for block_S in read_blocks(self.path, rate=rate):
            parts.append(block_S[max(0, start - passed) : max(0, start + samples - passed)])
            passed += len(block_S)
            if passed >= start + samples:
                break
        if passed <= start:
            raise UserError(f"{self.path}: ends after {passed / rate:.1f} s; expected {self.seconds:.1f} s, as it says")
        return torch.cat(parts)


@dataclass(frozen=True)
class BytesSound:
    """The sound of a file that is in memory, as compressed as it came."""

    data: bytes = field(repr=False)
    name: str
    """What messages call it."""

    @property
    def seconds(self) -> float:
        """As its header says; 0 for what is no sound."""
        return _header_seconds(lambda: io.BytesIO(self.data))

    def waveform(self, rate: int) -> Tensor:
        return read_audio(self.data, rate=rate, name=self.name)


def _header_seconds(opened: Callable[[], BinaryIO]) -> float:
    import soundfile

    try:
        with opened() as file:
            return soundfile.info(file).duration
    except (soundfile.LibsndfileError, OSError):
        pass
    try:
        with opened() as file, open_container(file) as container:
            return (container.duration or 0) / 1e6 or _seconds_of_packets(container)
    except Exception:  # whatever it is, reading it will say so
        return 0.0


def _seconds_of_packets(container: Any) -> float:
    """Of a recording that does not say it, such as a live one: where its last packet ends. Nothing is decoded."""
    stream = container.streams.audio[0]
    ends = (packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None)
    return float((max(ends) - (stream.start_time or 0)) * stream.time_base)


@dataclass(frozen=True)
class JoinedSounds:
    """Sounds one after the other, silence of `gaps[i]` seconds behind sound i (but not behind the last)."""

    parts: tuple[Sound, ...]
    gaps: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts) + sum(self.gaps)

    def waveform(self, rate: int) -> Tensor:
        return self.join([part.waveform(rate) for part in self.parts], rate)

    def join(self, waveforms: Sequence[Tensor], rate: int) -> Tensor:
        """The waveforms [S] of the parts, one after the other with the gaps."""
        pieces = [waveforms[0]]
        for waveform_S, gap in zip(waveforms[1:], self.gaps, strict=True):
            pieces += [torch.zeros(round(gap * rate)), waveform_S]
        return torch.cat(pieces)


@dataclass(frozen=True)
class CutSound:
    """A part of a sound, from `start` to `end` in seconds."""

    sound: Sound
    start: float
    end: float

    @property
    def parts(self) -> tuple[Sound, ...]:
        return (self.sound,)

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def waveform(self, rate: int) -> Tensor:
        return self.join([self.sound.waveform(rate)], rate)

    def join(self, waveforms: Sequence[Tensor], rate: int) -> Tensor:
        """The part [S] of the whole waveform [S].

        Raises:
            UserError: nothing of the sound is in it.
        """
        part_S = waveforms[0][round(self.start * rate) : round(self.end * rate)]
        if not len(part_S):
            whole = len(waveforms[0]) / rate
            raise UserError(f"no sound from {self.start:.2f} to {self.end:.2f} s; expected a part of its {whole:.2f} s")
        return part_S


class SoundMemory:
    """Waveforms that were made once, kept for the next epochs: decoding a file takes a third of a training step.

    Args:
        rate: samples a second.
        megabytes: as in `Kept`.
    """

    def __init__(self, *, rate: int, megabytes: float) -> None:
        self.rate = rate
        self._kept: Kept[Tensor] = Kept(megabytes=megabytes, size=lambda waveform_S: waveform_S.nbytes)

    def __call__(self, sound: Sound) -> Tensor:
        """The waveform [S] of a sound; of those made of others the others are kept. Not to be changed in place.

        Raises:
            UserError: as the sound's own `waveform`.
        """
        if isinstance(sound, JoinedSounds | CutSound):
            return sound.join([self(part) for part in sound.parts], self.rate)
        return self._kept.get(sound, lambda: sound.waveform(self.rate))


@dataclass(frozen=True)
class Reply:
    """What a decoder replies to words in text: as text, and as its tokens with the end of turn, if it came to that."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A sound and the text to it: its words, or their translation. In a dialogue its words, and the reply to them."""

    sound: Sound
    text: str
    id: str
    """Unique in its data set."""
    language: str = "English"
    """Of the text."""
    task: SpeechTask = "transcribe"
    speaker: str = ""
    reply: Reply | None = None
    """Of a dialogue, once it is known; see `speech.dialogue`."""

    @property
    def wanted(self) -> str:
        """What the model is to say.

        Raises:
            ValueError: the reply in a dialogue is not known yet.
        """
        if self.task != "dialogue":
            return self.text
        if self.reply is None:
            raise ValueError(f"{self.id}: a dialogue without its reply; expected with_replies to have been called")
        return self.reply.text


class Waveforms:
    """Waveforms of utterances as samples.

    Args:
        sounds: what to read, with a name each.
        rate: samples a second.
        augment: for training: other speeds and noise; None leaves sound alone.
        longest: what to do with more than `LONGEST_SECONDS`: it is broken, or a random minute of it is taken.
        heard_seconds: what the encoder hears at once. More is broken too, and an utterance that only augmentation would
            make longer stays as it is.
        keep_mb: megabytes of sound that are kept in memory for later epochs.
        on_error: a broken sound gives None or raises; see `BrokenSamples`.
    """

    def __init__(
        self,
        sounds: Sequence[tuple[Sound, str]],
        *,
        rate: int,
        augment: Augment | None = None,
        longest: Literal["refuse", "crop"] = "refuse",
        heard_seconds: float = inf,
        keep_mb: float = 0.0,
        on_error: OnError = "skip",
    ) -> None:
        self.sounds, self.rate, self.augment, self.longest = sounds, rate, augment, longest
        self.heard_seconds = heard_seconds
        self._memory = SoundMemory(rate=rate, megabytes=keep_mb)
        self._broken = BrokenSamples(on_error=on_error, what="recordings")
        folder = None if augment is None else augment.noise_folder
        self._noises = [] if folder is None else read_noises(folder, rate=rate)

    def __len__(self) -> int:
        return len(self.sounds)

    @property
    def broken(self) -> set[str]:
        """Ids of the broken recordings found so far."""
        return self._broken.ids

    @property
    def seconds(self) -> list[float]:
        """About how long each is, without reading it."""
        return [min(sound.seconds, LONGEST_SECONDS) for sound, _ in self.sounds]

    def sample(self, index: int, rng: random.Random) -> Tensor | None:
        """The waveform [S] of one utterance; `rng` draws the crop and the augmentation.

        Raises:
            UserError: a broken sound, with `on_error="fail"`.
        """
        return self._broken.read(lambda: self._read(index, rng), id=self.sounds[index][1])

    def _read(self, index: int, rng: random.Random) -> Tensor:
        sound, name = self.sounds[index]
        most_seconds = min(LONGEST_SECONDS, self.heard_seconds)
        most = round(most_seconds * self.rate)
        if isinstance(sound, FileSound) and sound.seconds > most_seconds + HEADER_SLACK:
            self._refuse(name, sound.seconds, most_seconds)
            start = rng.randrange(round(sound.seconds * self.rate) - most)
            waveform_S = sound.part(self.rate, start=start, samples=most)  # of hours, no more is ever in memory
        else:
            waveform_S = self._memory(sound)
            if len(waveform_S) > most:
                self._refuse(name, len(waveform_S) / self.rate, most_seconds)
                start = rng.randrange(len(waveform_S) - most + 1)
                waveform_S = waveform_S[start : start + most]
        if self.augment is None:
            return waveform_S
        changed_S = augment_waveform(waveform_S, settings=self.augment, rng=rng, noises=self._noises)
        return changed_S if len(changed_S) <= self.heard_seconds * self.rate else waveform_S

    def _refuse(self, name: str, seconds: float, most: float) -> None:
        if self.longest == "refuse":
            raise UserError(f"{name}: {seconds:.0f} s; expected an utterance of at most {most:.0f} s")


def read_noises(folder: Path, *, rate: int) -> list[Tensor]:
    """The beginnings [S] of all recordings in a folder and below it.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    files = find_files([str(folder)], AUDIO_SUFFIXES, what="sound")
    return [FileSound(file).part(rate, start=0, samples=round(NOISE_SECONDS * rate)) for file in files]
