"""Answers to questions about pictures in two steps: the model describes what it sees, then answers from its own words.

A chain of thought (Wei et al. 2022, arXiv 2201.11903; for pictures Zhang et al. 2023, arXiv 2302.00923). Answering one
question takes finding, comparing and counting, which an adapter learns late, since a short answer teaches little; a
description teaches every word of it. And what a frozen decoder can do with a text it could do before.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from multimodal.batch import Sample
from multimodal.model import MultimodalModel
from multimodal.turns import Turns
from vision.tiling import Tiles

DESCRIPTION_TOKENS = 96
"""A description is cut off after so many."""
DESCRIPTION_BEAMS = 3
"""Of a description: one wrong word spoils every answer from it, and a search finds some of them."""
Describe = Callable[[Sequence[tuple[Tiles, ...]]], list[str]]


def looks_of(pictures: Sequence[Tiles]) -> str:
    """Equal where the pictures look alike, whichever records they are from."""
    seen = hashlib.sha256()
    for tiles in pictures:
        seen.update(repr(tiles.grid).encode() + tiles.pixels.numpy().tobytes())
    return seen.hexdigest()


def description_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `generate` for a description: those of an answer, but longer, and searched if nothing else is said."""
    search = {} if options.get("do_sample") else {"num_beams": DESCRIPTION_BEAMS}
    return search | dict(options) | {"max_new_tokens": DESCRIPTION_TOKENS}


def describer(model: MultimodalModel, prompt: str, *, batch_size: int, **options: Any) -> Describe:
    """A function from pictures, entry by entry one or several, to what the model says of each. What looks alike is
    described once, also in later calls.

    Options are those of `generate`, as `description_options` changes them.
    """
    turns, said = Turns(model), dict[str, str]()
    options = description_options(options)

    def describe(shown: Sequence[tuple[Tiles, ...]]) -> list[str]:
        looks = list(map(looks_of, shown))
        new = {look: pictures for look, pictures in zip(looks, shown, strict=True) if look not in said}
        samples = [
            Sample({"image": pictures}, (turns(prompt, None, media=len(pictures)),)) for pictures in new.values()
        ]
        said.update(zip(new, model.generate_all(samples, batch_size=batch_size, **options), strict=True))
        return [said[look] for look in looks]

    return describe


def answer_from(
    model: MultimodalModel, descriptions: Sequence[str], questions: Sequence[str], *, batch_size: int, **options: Any
) -> list[str]:
    """Answers to questions, each about the scene of one description; no picture is looked at."""
    turns = Turns(model)
    samples = [
        Sample({}, (turns(f"{description}\n{question}", None, media=0),))
        for description, question in zip(descriptions, questions, strict=True)
    ]
    return model.generate_all(samples, batch_size=batch_size, **options)
