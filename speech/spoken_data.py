"""Built-in speech: sentences in many voices, pitches and speeds, some with noise, made when they are asked for.

Everything follows from the seed and the number of an utterance. Held-out utterances have voices and sentences that are
never in training.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from speech.augment import add_noise
from speech.foreign_texts import draw_foreign
from speech.spoken import HELD_OUT_VARIANTS, LANGUAGES, TRAIN_VARIANTS, Voice, english_voices, speak
from speech.spoken_texts import Writer, write
from speech.utterance import Utterance

SpokenSplit = Literal["train", "held_out"]

WORDS_A_MINUTE, PITCHES, NOISE_DB = (130, 210), (25, 75), (15.0, 40.0)
NOISY = 0.5
"""Share of the utterances with noise."""
SECONDS_A_CHARACTER = 0.053
"""At 175 words a minute."""


@dataclass(frozen=True, kw_only=True)
class SpokenSound:
    """A sentence in a voice, with noise of `snr_db` if there is to be any."""

    text: str
    voice: Voice
    words_a_minute: int
    pitch: int
    snr_db: float | None = None
    seed: int = 0
    """Of the noise."""

    @property
    def seconds(self) -> float:
        """An estimate from the letters."""
        return 0.3 + SECONDS_A_CHARACTER * len(self.text) * 175 / self.words_a_minute

    def waveform(self, rate: int) -> Tensor:
        """The waveform [S].

        Raises:
            UserError: as `speak`.
        """
        waveform_S = speak(self.text, voice=self.voice, words_a_minute=self.words_a_minute, pitch=self.pitch, rate=rate)
        if self.snr_db is None:
            return waveform_S
        return add_noise(waveform_S, snr_db=self.snr_db, rng=random.Random(self.seed))


def _spoken(text: str, voices: Sequence[Voice], rng: random.Random) -> SpokenSound:
    return SpokenSound(
        text=text,
        voice=rng.choice(voices),
        words_a_minute=rng.randint(*WORDS_A_MINUTE),
        pitch=rng.randint(*PITCHES),
        snr_db=rng.uniform(*NOISE_DB) if rng.random() < NOISY else None,
        seed=rng.getrandbits(32),
    )


def spoken_sentences(
    writers: Sequence[Writer], *, count: int, split: SpokenSplit, seed: int, name: str = "sentence"
) -> list[Utterance]:
    """English sentences, each of a writer drawn from `writers`, to be transcribed; `name` is what their ids begin with.

    Raises:
        UserError: a writer has too few texts.
    """
    voices, made = english_voices(split), []
    for number in range(count):
        rng = random.Random(f"spoken/{split}/{seed}/{number}")
        text = write(rng.choice(writers), rng, held_out=split == "held_out")
        sound = _spoken(text, voices, rng)
        made.append(Utterance(sound=sound, text=text, id=f"{name} {number}", speaker=str(sound.voice)))
    return made


def foreign_utterances(
    languages: Sequence[str], *, task: Literal["transcribe", "translate"], count: int, split: SpokenSplit, seed: int
) -> list[Utterance]:
    """Numbers, times and dates spoken in `languages` by turns, to be transcribed, or translated into English. Whichever
    it is, and whatever languages are beside it, a language says the same.

    Raises:
        UserError: a language that there is no text in, or num2words is not installed.
    """
    variants, made = TRAIN_VARIANTS if split == "train" else HELD_OUT_VARIANTS, []
    for number in range(count):
        language, turn = languages[number % len(languages)], number // len(languages)
        rng = random.Random(f"{language}/{split}/{seed}/{turn}")
        said, truth = draw_foreign(rng, language=language, held_out=split == "held_out")
        sound = _spoken(said, [Voice(LANGUAGES[language], variant) for variant in variants], rng)
        text, answered_in = (truth, "English") if task == "translate" else (said, language)
        made.append(
            Utterance(
                sound=sound,
                text=text,
                id=f"{language} {turn}, {task}",
                language=answered_in,
                task=task,
                speaker=str(sound.voice),
            )
        )
    return made
