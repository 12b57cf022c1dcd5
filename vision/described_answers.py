"""Answers to questions about pictures in two steps: the model describes what it sees, then answers from its own words.

A chain of thought (Wei et al. 2022, arXiv 2201.11903; for pictures Zhang et al. 2023, arXiv 2302.00923). Answering one
question takes finding, comparing and counting, which an adapter learns late, since a short answer teaches little; a
description teaches every word of it. And what a frozen decoder can do with a text it could do before.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from multimodal.batch import Sample
from multimodal.model import MultimodalModel
from multimodal.turns import Turns
from vision.tiling import Tiles

DESCRIPTION_TOKENS = 96
"""A description is cut off after so many."""


def looks_of(pictures: Sequence[Tiles]) -> str:
    """Equal where the pictures look alike, whichever records they are from."""
    seen = hashlib.sha256()
    for tiles in pictures:
        seen.update(repr(tiles.grid).encode() + tiles.pixels.numpy().tobytes())
    return seen.hexdigest()


def answer_described(
    model: MultimodalModel,
    shown: Sequence[tuple[Tiles, ...]],
    questions: Sequence[str],
    *,
    describe_with: str,
    batch_size: int,
    **options: Any,
) -> list[str]:
    """Answers to questions, each from what the model says of one entry of `shown` when asked `describe_with`.

    Options are those of `generate`.
    """
    said = describe(model, shown, prompt=describe_with, batch_size=batch_size, **options)
    return answer_from(model, said, questions, batch_size=batch_size, **options)


def describe(
    model: MultimodalModel, shown: Sequence[tuple[Tiles, ...]], *, prompt: str, batch_size: int, **options: Any
) -> list[str]:
    """What the model says of each entry of `shown`, one picture or several; those that look alike are described once.

    Options are those of `generate`, but for the number of tokens.
    """
    turns, looks = Turns(model), list(map(looks_of, shown))
    different = dict(zip(looks, shown, strict=True))
    samples = [Sample({"image": p}, (turns(prompt, None, media=len(p)),)) for p in different.values()]
    texts = model.generate_all(samples, batch_size=batch_size, **options | {"max_new_tokens": DESCRIPTION_TOKENS})
    said = dict(zip(different, texts, strict=True))
    return [said[look] for look in looks]


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
