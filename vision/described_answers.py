"""Answers to questions about pictures, at sight or in two steps: the model describes them, then answers from its own
words.

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
Answer = Callable[[Sequence[tuple[Tiles, ...]], Sequence[str]], list[str]]
"""From pictures, entry by entry one or several, and a prompt for each entry to what is said."""


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


def answerer(model: MultimodalModel, *, batch_size: int, describe_with: str = "", **options: Any) -> Answer:
    """What the model says at the sight of pictures or, with a prompt to `describe_with`, from its description of them
    alone. What looks alike is described, and asked the same, once, also in later calls: shown another's picture with
    the same prompt, a sample is told what the other was.

    Options are those of `generate`, for descriptions as `description_options` changes them.
    """
    if not describe_with:
        return _at_sight(model, batch_size=batch_size, **options)
    describe = _at_sight(model, batch_size=batch_size, **description_options(options))

    def answer(shown: Sequence[tuple[Tiles, ...]], prompts: Sequence[str]) -> list[str]:
        descriptions = describe(shown, [describe_with] * len(shown))
        return answer_from(model, descriptions, prompts, batch_size=batch_size, **options)

    return answer


def _at_sight(model: MultimodalModel, *, batch_size: int, **options: Any) -> Answer:
    turns, said = Turns(model), dict[tuple[str, str], str]()

    def answer(shown: Sequence[tuple[Tiles, ...]], prompts: Sequence[str]) -> list[str]:
        asked = [(looks_of(pictures), prompt) for pictures, prompt in zip(shown, prompts, strict=True)]
        new = {key: pictures for key, pictures in zip(asked, shown, strict=True) if key not in said}
        samples = [
            Sample({"image": pictures}, (turns(prompt, None, media=len(pictures)),))
            for (_, prompt), pictures in new.items()
        ]
        said.update(zip(new, model.generate_all(samples, batch_size=batch_size, **options), strict=True))
        return [said[key] for key in asked]

    return answer


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
