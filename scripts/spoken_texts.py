"""What the built-in voices say in training and tests, and what the built-in decoder learns to repeat."""

import random

from multimodal.data.grid_grammar import grammar_sentence
from multimodal.data.text import spoken_form
from speech.speech_data import WRITERS
from speech.spoken_texts import digits_in_a_row, write
from vision.scene_language import caption
from vision.scenes import sample_scene


def scene_caption(rng: random.Random) -> str:
    """A caption of a scene that was never drawn, as it is spoken."""
    return spoken_form(caption(sample_scene(rng, split="any"), rng))


ALL_WRITERS = (*WRITERS, scene_caption)
"""Number phrases, short prose, and captions of scenes."""


def to_repeat(rng: random.Random) -> str:
    """A sentence such as speech adapters will hand over, none that the built-in voices keep for tests."""
    kind = rng.random()
    if kind < 0.25:
        return digits_in_a_row(rng)
    if kind < 0.5:
        return grammar_sentence(rng)
    return write(rng.choice(ALL_WRITERS), rng, held_out=False)
