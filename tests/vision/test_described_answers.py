"""Answers from descriptions: what is described, what is answered from, and that controls reach both steps."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from multimodal.batch import Sample
from multimodal.errors import UserError
from multimodal.messages import Message
from multimodal.model import MultimodalModel
from tests.tiny_models import TILE, picture, tiny_model
from vision.caption_pictures import caption_pictures
from vision.captioning import DESCRIBED, DETAIL_PROMPT, Asked, ask_scenes, evaluate_both
from vision.captioning import evaluate_with_controls as evaluate
from vision.described_answers import answer_from, answerer, description_options, looks_of
from vision.image_modality import image_of
from vision.picture import PictureSource

SAY_ALL = {"type": "text", "text": "Say all."}


@pytest.fixture
def model() -> MultimodalModel:
    return tiny_model()


class Painter:
    """Stands in for `generate`: describes pictures by their mean, answers texts with what they begin with."""

    def __init__(self, model: MultimodalModel) -> None:
        self.model = model
        self.described: list[torch.Tensor] = []
        self.read: list[str] = []
        self.options: list[dict[str, Any]] = []

    def __call__(self, samples: Sequence[Sample], **options: Any) -> list[str]:
        self.options.append(options)
        return [self._say(sample) for sample in samples]

    def _say(self, sample: Sample) -> str:
        ids = [i for i in sample.turns[0].prompt if i < self.model.decoder.vocab_size]
        if sample.media:
            self.described.append(sample.media["image"][0].pixels)
            return f"{self.described[-1].mean():.3f}"
        self.read.append(str(self.model.tokenizer.decode(ids, skip_special_tokens=True)).strip())
        return self.read[-1].split("\n")[0]


@pytest.fixture
def painter(model: MultimodalModel, monkeypatch: pytest.MonkeyPatch) -> Painter:
    painter = Painter(model)
    monkeypatch.setattr(model, "generate", painter)
    return painter


def asked_about(model: MultimodalModel, numbers: Sequence[int]) -> list[Asked]:
    tiles = {i: image_of(model).tiling.tile(picture(seed=i)) for i in set(numbers)}
    return [
        Asked((tiles[i],), f"Question {at}?", ("a",), f"picture {i}", question=True) for at, i in enumerate(numbers)
    ]


def test_each_question_is_answered_from_the_description_of_the_picture_shown(
    model: MultimodalModel, painter: Painter
) -> None:
    asked = asked_about(model, [0, 0, 1, 2])
    means = [f"{one.images[0].pixels.mean():.3f}" for one in asked]
    images = [one.images for one in asked]
    blank = tuple(map(image_of(model).blank, images[3]))
    answer = answerer(model, describe_with="Say all.", batch_size=2, max_new_tokens=5)
    shown = [means[0], means[0], means[3], "0.000"]
    assert answer([images[0], images[1], images[3], blank], [one.prompt for one in asked]) == shown
    assert painter.read == [f"{mean}\nQuestion {at}?" for at, mean in enumerate(shown)]
    assert len(painter.described) == 3, "pictures that look alike are described once"
    assert answer([images[3], images[0]], ["Again?"] * 2) == [means[3], means[0]]
    assert len(painter.described) == 3, "and not again for a control"
    budgets = [options["max_new_tokens"] for options in painter.options]
    assert budgets[-1] == 5 and budgets[0] > 40, "descriptions are longer than answers"


def test_what_looks_alike_and_is_asked_alike_is_said_once(model: MultimodalModel, painter: Painter) -> None:
    """A caption of another's picture, the shuffled control, is that picture's own caption."""
    a, b = (one.images for one in asked_about(model, [0, 1]))
    answer = answerer(model, batch_size=2)
    said = answer([a, b, a, a], ["Who?", "Who?", "Who?", "What?"])
    assert said[0] == said[2] != said[1] and len(painter.described) == 3
    assert answer([b, a], ["Who?", "Who?"]) == [said[1], said[0]] and len(painter.described) == 3
    captions, _ = ask_scenes(model, count=4, size=TILE, seed=2)
    blanks = {looks_of(tuple(map(image_of(model).blank, one.images))) for one in captions}
    painter.described.clear()
    (found,) = evaluate_both(model, captions)
    assert sorted(found.shuffled) == sorted(found.predictions) != found.shuffled
    assert len(painter.described) == len(captions) + len(blanks)


def test_answers_are_those_of_the_bare_decoder_to_the_text(model: MultimodalModel) -> None:
    texts = ["a red circle on the left", "two blue stars"]
    found = answer_from(model, texts, ["What is red?", "How many?"], batch_size=1, max_new_tokens=6)
    messages = [f"{text}\n{question}" for text, question in zip(texts, ("What is red?", "How many?"), strict=True)]
    assert found == [model.chat([{"role": "user", "content": text}], max_new_tokens=6) for text in messages]
    tiles = image_of(model).tiling.tile(picture())
    shown: list[Message] = [{"role": "user", "content": [{"type": "image", "image": picture()}, SAY_ALL]}]
    for options, meant in (({}, {"num_beams": 3}), ({"num_beams": 1}, {}), ({"num_beams": 2}, {"num_beams": 2})):
        alone = model.chat(shown, max_new_tokens=96, **meant)
        describe = answerer(model, batch_size=4, **description_options(options))
        assert describe([(tiles,), (tiles,)], ["Say all."] * 2) == [alone] * 2
    assert "num_beams" not in description_options({"do_sample": True})


def test_both_ways_are_scored_each_with_its_controls(model: MultimodalModel, painter: Painter) -> None:
    captions, questions = ask_scenes(model, count=3, size=TILE, seed=2)
    found = evaluate_both(model, [*captions, *questions], describe_with=DETAIL_PROMPT)
    assert [set(one.scores) for one in found[1:]] == [{"qa_accuracy"}, {DESCRIBED}]
    own = [f"{one.images[0].pixels.mean():.3f}" for one in questions]
    assert found[2].predictions == own and set(found[2].blank) == {"0.000"}
    assert all(a != b for a, b in zip(found[2].shuffled, own, strict=True))
    assert [set(one.scores) for one in evaluate_both(model, captions, describe_with="Say all.")] == [
        {"cider_d", "bleu4", "object_f1"}
    ]
    with pytest.raises(ValueError, match="questions to answer from descriptions"):
        evaluate(model, captions, describe_with="Say all.")


def test_pictures_of_ones_own_are_described_first_and_broken_ones_passed_by(
    model: MultimodalModel, painter: Painter, tmp_path: Any
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no")
    pictures: list[PictureSource] = [picture(seed=1), tmp_path / "broken.png", picture(seed=2)]
    found = dict(caption_pictures(model, pictures, prompt="Which?", describe_with="Say all.", batch_size=2))
    assert isinstance(found[1], UserError)
    assert [text.split("\n")[1] for text in painter.read] == ["Which?", "Which?"]
    assert [found[0], found[2]] == [text.split("\n")[0] for text in painter.read] and found[0] != found[2]
