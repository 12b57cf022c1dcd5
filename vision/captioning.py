"""What an image adapter is trained and judged on: captions of pictures, and questions about them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from PIL import Image

from multimodal.batch import Sample, Turn
from multimodal.metrics import Evaluation, bleu4, cider_d, exact_match, with_controls
from multimodal.model import MultimodalModel
from multimodal.turns import Turns
from vision.caption_data import CaptionImages, ImageTextSample
from vision.described_answers import answerer, looks_of
from vision.image_modality import image_of
from vision.picture import open_picture
from vision.scene_language import caption, inventory, object_f1, question_answer
from vision.scenes import AS_DRAWN, Scene, SceneMix, nth_scene, scene_sample
from vision.tiling import Tiles

CAPTION_PROMPT = "Describe the image."
DETAIL_PROMPT = "Describe everything in the image."
DESCRIBED = "qa_accuracy_described"
"""Score of answers from descriptions."""


class CaptionSamples:
    """Captioned pictures as training samples: a picture is encoded once for several of its captions.

    Args:
        prompt: what to ask where a record has no question of its own.
        captions: turns per picture and epoch, drawn from its captions; all of them if there are fewer.
        misread: share of the tokens already said that are read wrong; see `multimodal.batch.misread`.
    """

    def __init__(
        self,
        model: MultimodalModel,
        images: CaptionImages,
        *,
        prompt: str = CAPTION_PROMPT,
        captions: int = 1,
        misread: float = 0.0,
    ) -> None:
        self.images, self.captions, self.prompt, self.misread = images, captions, prompt, misread
        self.turns = Turns(model)

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng: random.Random) -> Sample | None:
        found = self.images.sample(index, rng)
        if found is None:
            return None
        asked = self._asked(found.question, found.draw(self.captions, rng))
        turns = self.turns.learnt(asked, rng, media=len(found.images), share_misread=self.misread)
        return Sample({"image": found.images}, turns)

    def text(self, index: int, rng: random.Random) -> tuple[Turn, ...]:
        """The turns of a sample, with all captions, without its pictures."""
        record = self.images.records[index]
        asked = self._asked(record.question, self.images.captions(record))
        return self.turns.learnt(asked, rng, media=len(record.images))

    def _asked(self, question: str, captions: Sequence[str]) -> list[tuple[str, str]]:
        return [(question or self.prompt, text) for text in captions]


class SceneSamples:
    """Built-in scenes as training samples: one caption, some questions, perhaps a full description of each.

    Args:
        count: scenes in an epoch.
        size: pixels, as in `scene_sample`.
        seed: of the scenes.
        questions: turns of each scene besides its caption.
        inventory: a turn that says everything: all sizes, colours, shapes and places, where a question asks for one.
        mix: what share of the scenes is made easier.
        misread: as in `CaptionSamples`.
    """

    def __init__(
        self,
        model: MultimodalModel,
        *,
        count: int,
        size: int | tuple[int, int],
        seed: int,
        questions: int,
        inventory: bool = False,
        mix: SceneMix = AS_DRAWN,
        misread: float = 0.0,
    ) -> None:
        self.count, self.size, self.seed = count, size, seed
        self.questions, self.inventory, self.mix, self.misread = questions, inventory, mix, misread
        self.turns = Turns(model)

    def __len__(self) -> int:
        return self.count

    def sample(self, index: int, rng: random.Random) -> Sample:
        picture, scene, _ = scene_sample(index, seed=self.seed, split="train", size=self.size, mix=self.mix)
        tiles = image_of(self.turns.model).prepare(picture)
        return Sample({"image": (tiles,)}, self.turns.learnt(self._said(scene, rng), rng, share_misread=self.misread))

    def text(self, index: int, rng: random.Random) -> tuple[Turn, ...]:
        """The turns of a sample without its picture."""
        scene, _ = nth_scene(index, seed=self.seed, split="train", mix=self.mix)
        return self.turns.learnt(self._said(scene, rng), rng)

    def _said(self, scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
        said = [(CAPTION_PROMPT, caption(scene, rng))]
        said += [(DETAIL_PROMPT, inventory(scene))] if self.inventory else []
        return said + [question_answer(scene, rng) for _ in range(self.questions)]


@dataclass(frozen=True)
class Asked:
    """One thing to ask of one or several pictures, with everything that counts as right. `source` names the record;
    `picture` is there if it was rendered, since no file has it then.
    """

    images: tuple[Tiles, ...]
    prompt: str
    references: tuple[str, ...]
    source: str
    scene: Scene | None = None
    picture: Image.Image | None = None
    question: bool = False
    """Asked for an answer, and not for a caption."""

    @cached_property
    def looks(self) -> str:
        return looks_of(self.images)


def ask_scenes(
    model: MultimodalModel, *, count: int, size: int | tuple[int, int], seed: int
) -> tuple[list[Asked], list[Asked]]:
    """Held-out scenes to caption, and two questions about each to answer."""
    captions, questions = [], []
    for index in range(count):
        picture, scene, rng = scene_sample(index, seed=seed, split="held_out", size=size)
        tiles = image_of(model).tiling.tile(open_picture(picture))
        name = f"scene {index}"
        captions.append(Asked((tiles,), CAPTION_PROMPT, (caption(scene, rng),), name, scene, picture))
        for _ in range(2):
            question, answer = question_answer(scene, rng)
            questions.append(Asked((tiles,), question, (answer,), name, scene, question=True))
    return captions, questions


def ask_captions(samples: Sequence[ImageTextSample], *, prompt: str = CAPTION_PROMPT) -> list[Asked]:
    """Captioned pictures to caption again, or to ask their question; all their captions, or answers, are right.

    Raises:
        ValueError: there are features alone of a picture.
    """
    return [Asked(s.tiles, s.question or prompt, s.captions, s.id, question=bool(s.question)) for s in samples]


def _shown(model: MultimodalModel, asked: Sequence[Asked], media_from: Sequence[int | None]) -> list[tuple[Tiles, ...]]:
    """For each sample the pictures of sample `media_from[i]`, or blank ones for None."""
    blank = image_of(model).blank
    return [
        tuple(map(blank, one.images)) if source is None else asked[source].images  # type: ignore[arg-type]
        for one, source in zip(asked, media_from, strict=True)
    ]


def _score_captions(texts: list[str], asked: Sequence[Asked]) -> Mapping[str, float]:
    references = [list(one.references) for one in asked]
    scores = {"cider_d": cider_d(texts, references), "bleu4": bleu4(texts, references)}
    scenes = [one.scene for one in asked if one.scene is not None]
    return scores | ({"object_f1": object_f1(texts, scenes)} if len(scenes) == len(texts) else {})


def _score_answers(texts: list[str], asked: Sequence[Asked], *, name: str = "qa_accuracy") -> Mapping[str, float]:
    return {name: exact_match(texts, [one.references for one in asked])}


def evaluate_with_controls(
    model: MultimodalModel,
    asked: Sequence[Asked],
    *,
    seed: int = 0,
    batch_size: int = 64,
    describe_with: str = "",
    **options: Any,
) -> Evaluation[Asked]:
    """Captions (CIDEr-D, BLEU-4, object F1 on scenes) or answers (exact match), each beside its two controls.

    The controls show the model another sample's picture, and a blank one. Options are those of `generate`; with a
    prompt to `describe_with` the pictures are described first, and answers come from that alone.

    Raises:
        ValueError: captions and answers together, or captions from descriptions.
    """
    if len({one.question for one in asked}) > 1:
        raise ValueError("captions and answers have scores of their own; expected one or the other")
    answers = bool(asked) and asked[0].question
    if describe_with and not answers:
        raise ValueError("captions are descriptions themselves; expected questions to answer from descriptions")
    score = partial(_score_answers, name=DESCRIBED) if describe_with else _score_answers
    answer = answerer(model, batch_size=batch_size, describe_with=describe_with, **options)
    model.eval()
    return with_controls(
        score if answers else _score_captions,
        lambda samples, media_from: answer(_shown(model, samples, media_from), [one.prompt for one in samples]),
        asked,
        random.Random(f"controls/{seed}"),
        media_of=lambda one: one.looks,
    )


def captions_and_questions(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Those asked for a caption and those asked a question, whichever there are: they have scores of their own."""
    parts = [[one for one in asked if one.question == wanted] for wanted in (False, True)]
    return [part for part in parts if part]


def evaluate_both(
    model: MultimodalModel, asked: Sequence[Asked], *, describe_with: str = "", **options: Any
) -> list[Evaluation[Asked]]:
    """`evaluate_with_controls` of the captions and of the answers, with a prompt to `describe_with` also of those from
    descriptions.
    """
    parts = captions_and_questions(asked)
    found = [evaluate_with_controls(model, part, **options) for part in parts]
    if describe_with and parts and parts[-1][0].question:
        found.append(evaluate_with_controls(model, parts[-1], describe_with=describe_with, **options))
    return found
