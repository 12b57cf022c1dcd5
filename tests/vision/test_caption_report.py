"""The report page: the pictures that were shown, what was said of them, and every number."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from multimodal.metrics import Evaluation, Scores
from multimodal.model import MultimodalModel
from multimodal.report import Media, RunFacts, write_report
from tests.tiny_models import TILE, picture, tiny_model
from vision.caption_report import caption_cards, caption_report
from vision.captioning import Asked


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """Shared; not to be changed."""
    return tiny_model()


PICTURES = {"first": picture(2 * TILE, TILE, seed=1), "second": picture(2 * TILE, 2 * TILE, seed=2)}


def evaluations(model: MultimodalModel) -> tuple[Evaluation[Asked], Evaluation[Asked]]:
    prepare: Any = model.modalities["image"].prepare
    tiles = {name: prepare(image) for name, image in PICTURES.items()}
    captions = [Asked((t,), "Describe the image.", (f"the {n} picture", "a picture"), n) for n, t in tiles.items()]
    questions = [Asked((t,), f"Who is {n}?", ("A fox",), n) for n, t in tiles.items()]
    scores = {"cider_d": Scores(name="cider_d", score=0.5, shuffled=0.1, blank=0.2)}
    answered = {"qa_accuracy": Scores(name="qa_accuracy", score=0.5, shuffled=0.0, blank=0.25)}
    return (
        Evaluation(scores, captions, ["a fox & a <dog>", ""], ["", ""], ["", ""]),
        Evaluation(answered, questions, ["a fox.", "a dog"], ["", ""], ["", ""]),
    )


def opened(media: Media) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(media.uri.partition(",")[2])))


def test_cards_show_the_chosen_samples_with_the_answers_about_them(model: MultimodalModel) -> None:
    both = evaluations(model)
    first, second = caption_cards(model, both, [0, 1], pictures=PICTURES)
    assert first.title == "first" and first.hypothesis == "a fox & a <dog>" and "the first picture" in first.references
    assert [(a.question, a.predicted, a.right) for a in first.answers] == [("Who is first?", "a fox.", True)]
    assert [a.right for a in second.answers] == [False]
    assert len(first.insight) == 1 and not second.insight, "nothing was said, so nowhere was looked"
    assert [card.title for card in caption_cards(model, both, [1], pictures=PICTURES)] == ["second"]


def test_cards_show_the_originals_and_what_was_rendered_as_it_was(model: MultimodalModel) -> None:
    captions, _ = evaluations(model)
    large = {name: image.resize((128, 64)) for name, image in PICTURES.items()}
    rendered = picture(50, 20)
    captions.samples[1] = replace(captions.samples[1], picture=rendered)
    first, second = caption_cards(model, [captions], [0, 1], pictures=large)
    assert opened(first.media[0]).size == (128, 64) and opened(second.media[0]).size == rendered.size


def test_the_page_has_every_number_and_caption(model: MultimodalModel, tmp_path: Path) -> None:
    both = evaluations(model)
    report = caption_report(
        run=RunFacts(title="Captions of a test", seed=0, seconds=3, peak_memory_mb=100),
        evaluations=both,
        cards=caption_cards(model, both, [0], pictures=PICTURES),
        cards_note="1 picture chosen by seed 0",
    )
    write_report(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text()
    for text in ("Captions of a test", "a fox &amp; a &lt;dog&gt;", "the first picture", "CIDEr-D", "0.500", "0.250"):
        assert text in page, text
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="http' not in page
