"""Clips with questions from tables, manifests and public layouts: all of it is found, and what is wrong is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from multimodal.data.grid_grammar import SLOTS
from multimodal.errors import UserError
from tests.tiny_models import clip_file
from vision.clip_captions import CLIP_PROMPT
from vision.clip_layouts import read_clips
from vision.clip_question import ClipQuestion, QuestionedClip, multiple_choice


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_file(tmp_path_factory.mktemp("clip") / "a.mp4", frames=2)


def lay_out(folder: Path, clip: Path, clips: list[str], files: dict[str, Any]) -> Path:
    """A folder with copies of a clip, and files of text or JSON."""
    for name in clips:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / name)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def only(clips: list[QuestionedClip]) -> tuple[str, ClipQuestion]:
    assert len(clips) == 1 and len(clips[0].questions) == 1
    return clips[0].clip.name, clips[0].questions[0]


def test_a_table_beside_its_clips(tmp_path: Path, clip: Path) -> None:
    table = "video\tquestion\tanswer\toptions\tkind\tsplit\n"
    table += "a.mp4\tWho?\ta dog\ta cat|a dog\tsubject\ttrain\na\tWhere?\tb\tthere|here\tplace\ttrain\n"
    table += "b.mp4\t\tA fox.\t\t\ttest\n"
    lay_out(tmp_path, clip, ["videos/a.mp4", "b.mp4"], {"questions.tsv": table})
    first, second = read_clips(tmp_path, split="train")  # "a.mp4" and "a" are two names
    assert first.questions == (ClipQuestion("subject", "Who?", "a dog", options=("a cat", "a dog")),)
    assert second.questions[0].answer == "here" and second.clip == first.clip
    assert only(read_clips(tmp_path / "questions.tsv", split="test")) == (
        "b.mp4",
        ClipQuestion("", CLIP_PROMPT, "A fox."),
    )
    assert len(read_clips(tmp_path)) == 3
    with pytest.raises(UserError, match="no clips of split 'dev'; splits found: test, train"):
        read_clips(tmp_path, split="dev")


def test_quoted_cells_lose_their_quotes(tmp_path: Path, clip: Path) -> None:
    table = 'video\tquestion\tanswer\nb.mp4\t"is it ""red""?"\t"yes"\n'
    lay_out(tmp_path, clip, ["b.mp4"], {"questions.tsv": table})
    assert only(read_clips(tmp_path))[1] == ClipQuestion("", 'is it "red"?', "yes")


def test_a_manifest(tmp_path: Path, clip: Path) -> None:
    lines = [
        {"video": "a.mp4", "question": "Who?", "answers": ["a dog", "dog"], "kind": "subject"},
        {"video": "a.mp4", "question": "Which?", "answer": 1, "options": ["left", "right"]},
        {"video": "a.mp4", "caption": "A dog runs."},
    ]
    lay_out(tmp_path, clip, ["a.mp4"], {"train.jsonl": "\n".join(map(json.dumps, lines))})
    (found,) = read_clips(tmp_path, split="train")
    who, which, what = found.questions
    assert who.right == ("a dog", "dog") and which.answer == "right" and what.question == CLIP_PROMPT
    asked = multiple_choice(which)
    assert asked.question == "Which? (a) left (b) right" and asked.answer == "b" and asked.options == ("a", "b")


LAYOUTS: dict[str, tuple[list[str], dict[str, Any], str, ClipQuestion]] = {
    "msvd": (
        ["YouTubeClips/-4w_5_15.avi"],
        {
            "train_qa.json": [{"id": 0, "video_id": 7, "question": "who eats?", "answer": "cat"}],
            "youtube_mapping.txt": "-4w_5_15 vid7\n",
        },
        "train",
        ClipQuestion("", "who eats?", "cat"),
    ),
    "msrvtt": (
        ["video/video7.mp4"],
        {"val_qa.json": [{"id": 0, "video_id": 7, "category_id": 1, "question": "who eats?", "answer": "cat"}]},
        "dev",
        ClipQuestion("", "who eats?", "cat"),
    ),
    "nextqa": (
        ["NExTVideo/1150/2.mp4"],
        {
            "test.csv": "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
            "24,10,64,64,why?,1,3,CW,2,one,three,four,five\n",
            "map_vid_vidorID.json": {"24": "1150/2"},
        },
        "test",
        ClipQuestion("CW", "why?", "one", options=("2", "one", "three", "four", "five")),
    ),
    "activitynet": (
        ["videos/v_abc.mp4"],
        {
            "train_q.json": [{"question_id": "abc_1", "video_name": "abc", "question": "is it wet"}],
            "train_a.json": [{"question_id": "abc_1", "answer": "yes", "type": 3}],
        },
        "train",
        ClipQuestion("3", "is it wet", "yes"),
    ),
    "perception": (
        ["videos/video_8.mp4"],
        {
            "mc_question_valid.json": {
                "video_8": {
                    "metadata": {"split": "valid"},
                    "mc_question": [
                        {
                            "id": 0,
                            "question": "How many?",
                            "options": ["3", "2", "1"],
                            "answer_id": 2,
                            "area": "physics",
                        }
                    ],
                }
            }
        },
        "dev",
        ClipQuestion("physics", "How many?", "1", options=("3", "2", "1")),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_public_layouts(tmp_path: Path, clip: Path, name: str) -> None:
    clips, files, split, expected = LAYOUTS[name]
    lay_out(tmp_path, clip, clips, files)
    assert only(read_clips(tmp_path, split=split)) == (Path(clips[0]).name, expected)


def test_grid_asks_for_every_word_and_the_sentence(tmp_path: Path, clip: Path) -> None:
    table = "id\tsplit\ttext\nbbaf3s\ttrain\tbin blue at f three soon\nbbal6n\ttest\tbin blue at l six now\n"
    lay_out(tmp_path, clip, ["clips/bbaf3s.mp4", "clips/bbal6n.mp4"], {"transcripts.tsv": table})
    (found,) = read_clips(tmp_path, split="train")
    assert {q.kind: q.answer for q in found.questions} == {
        **dict(zip(SLOTS, ["bin", "blue", "at", "f", "three", "soon"], strict=True)),
        "sentence": "bin blue at f three soon",
    }
    assert found.questions[1].question == "Which colour is spoken?" and len(found.questions[1].options) == 4
    (tmp_path / "transcripts.tsv").write_text(table.replace("six", "eleven"))
    with pytest.raises(UserError, match=r"transcripts\.tsv, line 3: .*eleven.*not a sentence of GRID"):
        read_clips(tmp_path)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no questions about clips.*tables found: none"),
    "two tables": ({"x.tsv": "", "y.tsv": ""}, r"tables found: x\.tsv, y\.tsv"),
    "no column": ({"q.csv": "clip,answer\na,b\n"}, r"q\.csv: no column 'video'; columns found: clip, answer"),
    "cells": ({"q.tsv": "video\tanswer\na.mp4\n"}, r"q\.tsv, line 2: 1 cells; expected 2 \(video, answer\)"),
    "no answer": (
        {"q.jsonl": '{"video": "a.mp4", "question": "?"}'},
        r"q\.jsonl, line 1: no answer; keys found: video",
    ),
    "not JSON": ({"q.jsonl": "{"}, r"q\.jsonl, line 1: not JSON"),
    "option": ({"q.tsv": "video\tanswer\toptions\na.mp4\tx y\tl|r\n"}, "answer 'x y' is not among the options l, r"),
    "empty": ({"q.tsv": "video\tanswer\n"}, "no questions in it"),
    "no clip": ({"q.tsv": "video\tanswer\nzz\tb\n"}, r"q\.tsv, line 2: clip 'zz' not found, nor any other; looked in"),
    "no list": ({"train_qa.json": {}}, r"train_qa\.json: a dict; expected a list of questions"),
    "options": ({"q.jsonl": '{"video": "a.mp4", "answer": "b", "options": 5}'}, "options 5; expected a list"),
    "many options": (
        {"q.tsv": "video\tanswer\toptions\na.mp4\to3\t" + "|".join(f"o{n}" for n in range(27)) + "\n"},
        "27 options; expected at most 26, one a letter",
    ),
    "no questions": ({"mc_question_train.json": {"v": []}}, r"v: no object with a list of questions 'mc_question'"),
    "no map": (
        {"train.csv": "video,answer\na,b\n", "map_vid_vidorID.json": []},
        r"map_vid_vidorID\.json: a list; expected an object with the folder of each clip",
    ),
    "no id": ({"train_qa.json": [{"answer": "b"}]}, "entry 0: no 'video_id'; keys found: answer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_line(tmp_path: Path, clip: Path, name: str) -> None:
    files, expected = BAD[name]
    lay_out(tmp_path, clip, ["a.mp4"], files)
    with pytest.raises(UserError, match=expected) as error:
        read_clips(tmp_path, split="train" if any("train" in file for file in files) else None)
    assert "\n" not in str(error.value)


def test_clips_that_are_not_there_are_left_out_with_a_warning(
    tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay_out(tmp_path, clip, ["a.mp4"], {"q.tsv": "video\tanswer\na.mp4\tb\ngone\tb\n"})
    assert len(read_clips(tmp_path)) == 1 and "1 clips not found and left out, the first is 'gone'" in caplog.text


def test_a_number_counts_options_as_they_stand(tmp_path: Path, clip: Path) -> None:
    rows = ["video,question,a0,a1,a2,answer", "a,Q?,yes,yes,no,1", "a,Q?,yes,,no,2", "a,Q?,cat,dog,cow,dog"]
    lay_out(tmp_path, clip, ["a.mp4"], {"questions.csv": "\n".join(rows)})
    (found,) = read_clips(tmp_path)
    assert [question.answer for question in found.questions] == ["yes", "no", "dog"]
    assert found.questions[0].options == found.questions[1].options == ("yes", "no")
    for answer in ("3", "1", "fox"):
        (tmp_path / "questions.csv").write_text(f"{rows[0]}\na,Q?,yes,,no,{answer}")
        with pytest.raises(UserError, match=f"answer '{answer}' is not among the options yes, no"):
            read_clips(tmp_path)


def test_nothing_is_tested_that_was_trained_on(tmp_path: Path, clip: Path) -> None:
    lines = [json.dumps({"video": f"{i}.mp4", "question": "Who?", "answer": "a fox"}) for i in range(60)]
    lay_out(tmp_path, clip, [f"{i}.mp4" for i in range(60)], {"train.jsonl": "\n".join(lines)})
    assert len(read_clips(tmp_path / "train.jsonl", split="train")) == 60
    with pytest.raises(UserError, match="named after split 'train'"):
        read_clips(tmp_path / "train.jsonl", split="dev")
