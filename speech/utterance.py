"""Utterances: a sound that can be had at any time, and what it says.

Sounds are named, not held: a data set of hours is a list of small objects, and each waveform is made when its turn
comes, always the same.

Legend: S samples.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from multimodal.data.broken import BrokenSamples, OnError
from multimodal.errors import UserError
from multimodal.files import open_container
from speech.audio import read_audio
from speech.augment import Augment, augment_waveform

LONGEST_SECONDS = 60.0
"""An utterance is no longer (Llama 3 paper, section 8.1 / spec B1, B2.1)."""

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

    @property
    def seconds(self) -> float:
        """As its header says; 0 for a file that cannot be read."""
        import soundfile

        try:
            return soundfile.info(self.path).duration
        except (soundfile.LibsndfileError, OSError):
            return _container_seconds(self.path)

    def waveform(self, rate: int) -> Tensor:
        return read_audio(self.path, rate=rate)


def _container_seconds(path: Path) -> float:
    try:
        with path.open("rb") as file, open_container(file) as container:
            return (container.duration or 0) / 1e6
    except Exception:  # whatever it is, reading it will say so
        return 0.0


@dataclass(frozen=True)
class JoinedSounds:
    """Sounds one after the other, silence of `gaps[i]` seconds behind sound i (but not behind the last)."""

    parts: tuple[Sound, ...]
    gaps: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return sum(part.seconds for part in self.parts) + sum(self.gaps)

    def waveform(self, rate: int) -> Tensor:
        pieces = [self.parts[0].waveform(rate)]
        for part, gap in zip(self.parts[1:], self.gaps, strict=True):
            pieces += [torch.zeros(round(gap * rate)), part.waveform(rate)]
        return torch.cat(pieces)


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
        on_error: a broken sound gives None or raises; see `BrokenSamples`.
    """

    def __init__(
        self,
        sounds: Sequence[tuple[Sound, str]],
        *,
        rate: int,
        augment: Augment | None = None,
        longest: Literal["refuse", "crop"] = "refuse",
        on_error: OnError = "skip",
    ) -> None:
        self.sounds, self.rate, self.augment, self.longest = sounds, rate, augment, longest
        self._broken = BrokenSamples(on_error=on_error, what="recordings")

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
        waveform_S, most = sound.waveform(self.rate), round(LONGEST_SECONDS * self.rate)
        if len(waveform_S) > most:
            if self.longest == "refuse":
                seconds = len(waveform_S) / self.rate
                raise UserError(f"{name}: {seconds:.0f} s; expected an utterance of at most {LONGEST_SECONDS:.0f} s")
            start = rng.randrange(len(waveform_S) - most + 1)
            waveform_S = waveform_S[start : start + most]
        return augment_waveform(waveform_S, settings=self.augment, rng=rng) if self.augment else waveform_S
