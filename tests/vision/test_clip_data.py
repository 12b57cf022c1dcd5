"""The clips of a run: what is learnt from, captioned, judged and simple; what cannot be meant is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from multimodal.errors import UserError
from tests.vision.made_grid import make_grid
from vision.clip_captions import CLIP_DETAIL_PROMPT
from vision.clip_data import CLIPS, ClipDataConfig, ClipSets
from vision.clip_question import ClipSet, QuestionedClip
from vision.clip_stories import ALONE_KINDS


@pytest.fixture
def builtin(tmp_path: Path) -> ClipSets:
    data = ClipDataConfig(clips=4, clip_size=16, clip_frames=8, dev_count=2)
    return ClipSets(data, folder=tmp_path / "clips", seed=3)


@pytest.fixture
def grid(builtin: ClipSets, tmp_path: Path) -> ClipSets:
    return replace(builtin, data=replace(builtin.data, source=str(make_grid(tmp_path / "grid"))))


def all_of(clips: ClipSet) -> list[QuestionedClip]:
    return [clips[index] for index in range(len(clips))]


def test_numbers_that_cannot_be_are_refused() -> None:
    for wrong in ({"questions": 0}, {"dev_count": -1}, {"choice": 1.5}, {"misread": 1.0}):
        (name,) = wrong
        with pytest.raises(UserError, match=f"--data.{name.replace('_', '-')} "):
            ClipDataConfig(**wrong)  # type: ignore[arg-type]


def test_built_in_clips_that_are_judged_or_reported_are_others_than_those_learnt(builtin: ClipSets) -> None:
    learnt, judged = all_of(builtin.learnt()), builtin.judged()
    assert len(learnt) == 4 and any(len(clip.questions) > 1 for clip in learnt)
    assert len(judged) == 2 and all(len(clip.questions) == 1 for clip in judged)
    reported = builtin.reported(3)
    assert all(clip.name.startswith("held_out") for clip in (*judged, *reported))
    assert len({clip.name for clip in (*judged, *reported)}) == 5
    described = all_of(builtin.captioned(CLIPS))
    some = replace(builtin, data=replace(builtin.data, kinds=("place", "hit")))  # kinds are those of questions
    assert [clip.questions for clip in all_of(some.captioned(CLIPS))] == [clip.questions for clip in described]
    assert [clip.clip for clip in described] == [clip.clip for clip in learnt]
    assert all([question.kind for question in clip.questions] == ["caption"] for clip in described)


def test_everything_is_said_of_clips_that_are_learnt_and_asked_of_no_others(builtin: ClipSets) -> None:
    assert builtin.data.describe_with == ""
    said = replace(builtin, data=replace(builtin.data, inventory=True))
    assert said.data.describe_with == CLIP_DETAIL_PROMPT
    for clips, plain in ((said.learnt(), builtin.learnt()), (said.simple(3, words=1), builtin.simple(3, words=1))):
        assert [clip.questions[0].question for clip in all_of(clips)] == [CLIP_DETAIL_PROMPT] * len(clips)
        assert [clip.questions[1:] for clip in all_of(clips)] == [clip.questions for clip in all_of(plain)]
    assert said.judged() == builtin.judged() and said.reported(2) == builtin.reported(2)
    with pytest.raises(UserError, match=r"--data.inventory of /a/folder: expected built-in clips"):
        replace(said.data, source="/a/folder")


def test_simple_built_in_clips_have_one_object(builtin: ClipSets) -> None:
    for clip in all_of(builtin.simple(5, words=1)):
        assert {question.subject for question in clip.questions} == {0}
        assert {question.kind for question in clip.questions} <= set(ALONE_KINDS)
    some = replace(builtin, data=replace(builtin.data, kinds=("swap", "place")))
    assert {clip.questions[0].kind for clip in all_of(some.simple(5, words=1))} == {"place"}
    with pytest.raises(UserError, match="kinds swap: expected some of direction, bounces, place, motion"):
        replace(builtin, data=replace(builtin.data, kinds=("swap",))).simple(5, words=1)


def test_simple_clips_of_grid_are_parts_and_those_learnt_may_have_some_beside_them(grid: ClipSets) -> None:
    assert [len(part.questions) for part in all_of(grid.simple(7, words=1))] == [2] * 7
    whole = all_of(grid.learnt())
    cut = all_of(replace(grid, data=replace(grid.data, cuttings=3)).learnt())
    assert cut[: len(whole)] == whole and all(clip.between is not None for clip in cut[len(whole) :])
    assert len(cut) == len(whole) + 3 and all(clip.between is None for clip in whole)


def test_what_cannot_be_cut_is_refused(builtin: ClipSets, grid: ClipSets) -> None:
    with pytest.raises(UserError, match="cuttings with built-in clips: expected a folder in GRID's layout"):
        replace(builtin, data=replace(builtin.data, cuttings=3)).learnt()
    for sets, found in ((builtin, "questions of the kind 'nothing'"), (grid, "no question of the kinds nothing")):
        with pytest.raises(UserError, match=found):
            replace(sets, data=replace(sets.data, kinds=("nothing",))).learnt()
    with pytest.raises(UserError, match="expected all kinds"):
        replace(grid, data=replace(grid.data, kinds=("colour",))).simple(3, words=1)
