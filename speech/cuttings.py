"""Pieces of sentences whose words have times: single words and a few in a row, cut out of their recordings.

A small encoder finds out which sound is which word from short pieces in minutes; from whole sentences of fast speech it
may learn nothing but which words there are.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from multimodal.data.word_times import WordTimes
from multimodal.errors import UserError
from speech.utterance import CutSound, Utterance

MOST_WORDS = 4
MARGIN_SECONDS = 0.04
"""More of the sound on either side: alignments are good to about a frame."""


def cuttings(utterances: Sequence[Utterance], times: WordTimes, *, count: int, seed: int) -> list[Utterance]:
    """`count` pieces of one to four words, each of an utterance drawn by the seed.

    Raises:
        UserError: no utterance has word times.
    """
    timed = [u for u in utterances if PurePath(u.id).stem in times]
    if not timed:
        raise UserError(f"cuttings: none of {len(utterances)} utterances has word times; expected their ids there")
    made = []
    for number in range(count):
        rng = random.Random(f"cutting/{seed}/{number}")
        whole = rng.choice(timed)
        words = times[PurePath(whole.id).stem]
        length = rng.randint(1, min(MOST_WORDS, len(words)))
        first = rng.randrange(len(words) - length + 1)
        piece = words[first : first + length]
        sound = CutSound(whole.sound, max(0.0, piece[0][1] - MARGIN_SECONDS), piece[-1][2] + MARGIN_SECONDS)
        text = " ".join(word for word, _, _ in piece)
        made.append(replace(whole, sound=sound, text=text, id=f"{whole.id}, words {first + 1} to {first + length}"))
    return made
