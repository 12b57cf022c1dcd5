"""What the built-in voices say in training and tests: number phrases, short prose, and captions of scenes."""

import random

from multimodal.data.text import spoken_form
from speech.speech_data import WRITERS
from vision.scene_language import caption
from vision.scenes import sample_scene


def scene_caption(rng: random.Random) -> str:
    """A caption of a scene that was never drawn, as it is spoken."""
    return spoken_form(caption(sample_scene(rng, split="any"), rng))


ALL_WRITERS = (*WRITERS, scene_caption)
