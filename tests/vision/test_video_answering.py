"""Samples and scores of questions about clips: broken ones are skipped, controls are what they are called."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from multimodal.batch import Sample
from multimodal.errors import UserError
from multimodal.metrics import Evaluation
from multimodal.model import MultimodalModel
from multimodal.wups import Likeness
from tests.multimodal.made_wordnet import MadeTaxonomy
from tests.tiny_models import ask, clip_file, tiny_video_model
from vision.builtin_clips import BuiltinClips
from vision.clip_frames import ClipFrames, backwards, middle_frame
from vision.clip_question import ClipQuestion, QuestionedClip
from vision.described_answers import description_options
from vision.video_answering import (
    AskedClip,
    ClipSamples,
    answer_clips,
    ask_clips,
    evaluate_clips,
    reversal_metrics,
    score_answers,
)

LEFT = ClipQuestion("direction", "Which way?", "left", "right", ("right", "left"))
COUNT = ClipQuestion("bounces", "How often?", "two", also_right=("2",))


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """Shared; not to be changed."""
    return tiny_video_model()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[QuestionedClip]:
    """Two good clips and a broken one."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "bad.mp4").write_text("no")
    paths = [clip_file(folder / "a.mp4"), clip_file(folder / "b.mp4", seed=1), folder / "bad.mp4"]
    return [QuestionedClip(path, (LEFT, COUNT), path.stem) for path in paths]


def test_a_sample_is_the_conversation(model: MultimodalModel, clips: list[QuestionedClip]) -> None:
    samples = ClipSamples(model, clips, questions=2)
    found = samples.sample(0, random.Random(0))
    assert found is not None and len(samples) == 3 and len(found.media["video"]) == 1
    expected = [model.sample(ask(clips[0].clip, q.question), q.answer).turns[0] for q in (LEFT, COUNT)]
    assert sorted(found.turns, key=str) == sorted(expected, key=str)
    (chosen,) = (
        ClipSamples(model, [QuestionedClip(clips[0].clip, (LEFT,), "a")], choice=1).sample(0, random.Random(0)).turns
    )  # type: ignore[union-attr]
    assert chosen == model.sample(ask(clips[0].clip, "Which way? (a) right (b) left"), "b").turns[0]


def test_the_text_of_a_sample_can_be_had_without_its_clip(
    model: MultimodalModel, clips: list[QuestionedClip], tmp_path: Path
) -> None:
    for some in (clips, BuiltinClips(folder=tmp_path / "made", count=3, seed=1, split="train", size=32, more=True)):
        samples = ClipSamples(model, some, questions=2, always=1, choice=0.5, misread=0.0)
        text = [samples.text(index, random.Random(index)) for index in range(2)]
        assert not (tmp_path / "made").exists()
        for index, turns in enumerate(text):
            sample = samples.sample(index, random.Random(index))
            assert sample is not None and sample.turns == turns
    assert samples.text(2, random.Random(0))  # of the clip that is not written yet


def test_a_clip_is_asked_what_it_was_made_for_and_of_the_others_every_kind_alike(
    model: MultimodalModel, clips: list[QuestionedClip]
) -> None:
    many = tuple(ClipQuestion("direction", f"Which way does {n} move?", "left") for n in range(30))
    clip = QuestionedClip(clips[0].clip, (LEFT, *many, COUNT), "a")
    samples = ClipSamples(model, [clip], questions=3, always=1)
    drawn = [samples._draw(clip.questions, random.Random(seed)) for seed in range(60)]
    assert all(one[0] == LEFT and len(set(one)) == 3 for one in drawn)
    assert sum(COUNT in one for one in drawn) > 30  # one of 31, and yet in most
    plain = ClipSamples(model, [clip], questions=3)
    assert sum(LEFT in plain._draw(clip.questions, random.Random(seed)) for seed in range(60)) < 30
    short = QuestionedClip(clips[0].clip, (LEFT, COUNT), "a")
    assert samples._draw(short.questions, random.Random(0)) == [LEFT, COUNT]
    both = ClipSamples(model, [clip], questions=3, always=2)
    assert all(both._draw(clip.questions, random.Random(seed))[:2] == [LEFT, many[0]] for seed in range(20))


def test_words_already_said_may_be_read_wrong(model: MultimodalModel, clips: list[QuestionedClip]) -> None:
    found = ClipSamples(model, clips, questions=2, misread=0.9).sample(0, random.Random(0))
    assert found is not None and any(turn.misread not in (None, turn.answer) for turn in found.turns)


def test_broken_clips_are_skipped_and_counted_or_end_the_run(
    model: MultimodalModel, clips: list[QuestionedClip]
) -> None:
    samples = ClipSamples(model, clips)
    assert [samples.sample(2, random.Random(i)) for i in range(3)] == [None] * 3 and samples.broken.ids == {"bad"}
    with pytest.raises(UserError, match=r"bad\.mp4"):
        ClipSamples(model, clips, on_error="fail").sample(2, random.Random(0))
    assert {one.name for one in ask_clips(model, clips)} == {"a", "b"}
    assert [one.question.answer for one in ask_clips(model, clips, choice=True)] == ["b", "b"]


def test_scores_count_every_right_answer(clips: list[QuestionedClip]) -> None:
    asked = [AskedClip(clips[0].clip, "a", question) for question in (LEFT, COUNT, COUNT)]
    scores = score_answers(["Left.", "2", "a two or three"], asked)
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert (scores["accuracy_direction"], scores["accuracy_bounces"]) == (1.0, 0.5)
    assert scores["soft_match"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert set(score_answers(["b"], asked[:1], name="choice_accuracy")) == {"choice_accuracy"}


def test_related_words_count_where_there_is_a_taxonomy(clips: list[QuestionedClip]) -> None:
    asked = [AskedClip(clips[0].clip, "a", ClipQuestion("", "Who?", answer)) for answer in ("dog", "dog", "cat")]
    said, likeness = ["a hound", "a cat", "a hammer"], Likeness(MadeTaxonomy())
    plain, soft = score_answers(said, asked), score_answers(said, asked, likeness=likeness)
    assert soft.keys() - plain.keys() == {"wups_0.9", "wups_0.0"} and plain["soft_match"] == 0
    alike = [1, likeness.words("dog", "cat"), likeness.words("cat", "hammer")]
    assert soft["wups_0.0"] == pytest.approx(sum(alike) / 3)
    assert soft["wups_0.9"] == pytest.approx((1 + 0.1 * alike[1] + 0.1 * alike[2]) / 3)


def test_reversed_answers_are_counted_both_ways(clips: list[QuestionedClip]) -> None:
    asked = [AskedClip(clips[0].clip, "a", question) for question in (LEFT, LEFT, COUNT)]
    said = Evaluation({}, asked, ["left"] * 3, [""] * 3, [""] * 3, {"reversed": ["right", "left", "two"]})
    assert reversal_metrics(said) == {"accuracy_reversed_order_questions": 0.5, "accuracy_reversed_answers": 0.5}
    said = Evaluation({}, asked[2:], ["left"], [""], [""], {"reversed": ["right"]})
    assert reversal_metrics(said) == {}


def test_every_control_shows_another_clip(model: MultimodalModel, clips: list[QuestionedClip]) -> None:
    asked = ask_clips(model, clips)
    found = evaluate_clips(model, asked, max_new_tokens=4)
    assert set(found.scores["accuracy"].controls) == {"shuffled", "blank", "middle_frame", "reversed"}
    assert found.predictions == [model.chat(ask(one.clip, one.question.question), max_new_tokens=4) for one in asked]
    swaps = [answer_clips(model, asked, to, batch_size=3, max_new_tokens=4) for to in ([2, 3, 0, 1], [3, 2, 1, 0])]
    assert found.shuffled in swaps

    def said(change: Callable[[ClipFrames], ClipFrames]) -> list[str]:
        samples = [model.sample(ask(one.clip, one.question.question)) for one in asked]
        changed = [replace(s, media={**s.media, "video": (change(s.media["video"][0]),)}) for s in samples]
        return model.generate(changed, max_new_tokens=4)

    assert found.others == {
        "middle_frame": said(lambda clip: clip.reordered(middle_frame)),
        "reversed": said(lambda clip: clip.reordered(backwards)),
    }
    assert found.blank == said(model.modalities["video"].blank)  # type: ignore[arg-type]
    assert len({tuple(texts) for texts in (found.predictions, found.blank, *found.others.values())}) > 2


def test_answers_from_descriptions_look_at_the_clip_once_and_at_the_words_alone(
    model: MultimodalModel, clips: list[QuestionedClip]
) -> None:
    asked = ask_clips(model, clips)
    clips_looked_at: list[int] = []
    read: list[tuple[object, ...]] = []
    generate_all = model.generate_all

    def spy(samples: Iterable[Sample], **options: Any) -> list[str]:
        several = list(samples)
        if not several or several[0].media:
            clips_looked_at.append(len(several))
        else:
            read.append(tuple(tuple(sample.turns[0].prompt) for sample in several))
        return generate_all(several, **options)

    with patch.object(model, "generate_all", spy):
        found = evaluate_clips(model, asked, name="described_accuracy", describe_with="Say all.", max_new_tokens=4)
    # Shuffled, each clip is described as it was for itself.
    assert clips_looked_at == [2, 0, 2, 2, 2] and [len(texts) for texts in read] == [4] * 5
    assert len(set(read)) > 1, "controls are described anew"
    own = [model.chat(ask(one.clip, "Say all."), **description_options({})) for one in asked]
    assert found.predictions == [
        model.chat([{"role": "user", "content": f"{said}\n{one.question.question}"}], max_new_tokens=4)
        for said, one in zip(own, asked, strict=True)
    ]
    assert set(found.scores["described_accuracy"].controls) == {"shuffled", "blank", "middle_frame", "reversed"}


def test_a_clip_is_encoded_once_for_all_its_questions(model: MultimodalModel, clips: list[QuestionedClip]) -> None:
    asked = ask_clips(model, [replace(clip, questions=(LEFT, COUNT, replace(COUNT, question="?"))) for clip in clips])
    asked = [asked[number] for number in (0, 3, 1, 4, 2, 5)]
    encoder = model.modalities["video"].image.encoder  # type: ignore[union-attr]
    runs: list[object] = []
    handle = encoder.register_forward_hook(lambda *_: runs.append(None))
    try:
        together = answer_clips(model, asked, batch_size=4, max_new_tokens=4)
        blank = answer_clips(model, asked, [None, 0] * 3, batch_size=4, max_new_tokens=4)
    finally:
        handle.remove()
    assert len(runs) == 2 + 2
    alone = [model.sample(ask(one.clip, one.question.question)) for one in asked]
    assert together == [model.generate([sample], max_new_tokens=4)[0] for sample in alone]
    assert blank[1::2] == [
        model.chat(ask(asked[0].clip, one.question.question), max_new_tokens=4) for one in asked[1::2]
    ]
