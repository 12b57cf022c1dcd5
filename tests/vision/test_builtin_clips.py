"""Built-in clips as files: real videos, made once, with the questions and captions of their scenes."""

import random
from dataclasses import replace
from pathlib import Path

from vision.builtin_clips import BuiltinClips
from vision.clip import read_clip
from vision.clip_captions import CLIP_DETAIL_PROMPT, CLIP_PROMPT, clip_caption, clip_inventory
from vision.clip_language import KINDS, clip_sample


def clips(folder: Path, **settings: object) -> BuiltinClips:
    return BuiltinClips(
        **{"folder": folder, "count": 3, "seed": 1, "split": "train", "size": 32, "frames": 8} | settings
    )  # type: ignore[arg-type]


def test_a_clip_is_a_video_that_is_made_once(tmp_path: Path) -> None:
    made = clips(tmp_path / "deep")
    first = made[0]
    assert first.clip.suffix == ".mp4" and len(read_clip(first.clip, count=50).frames) == 8
    written = first.clip.stat().st_mtime_ns
    assert made[0] == first and first.clip.stat().st_mtime_ns == written
    names = {
        replace(made, **change)[0].clip
        for change in ({"seed": 2}, {"size": 48}, {"split": "held_out"}, {"kinds": ("place",)})
    }
    alone = replace(made, kinds=("place",), alone=True)[0].clip
    assert len(names | {first.clip, alone}) == 6


def test_more_asks_everything_after_the_first_question(tmp_path: Path) -> None:
    _, question = clip_sample(1, seed=1, split="train", kinds=KINDS)
    assert clips(tmp_path)[1].questions == (question,)
    asked = clips(tmp_path, more=True)[1].questions
    assert asked[0] == question and len({q.question for q in asked}) == len(asked) > 1


def test_captions_and_inventories_are_those_of_the_scene(tmp_path: Path) -> None:
    scene, _ = clip_sample(1, seed=1, split="train", kinds=KINDS)
    (only,) = clips(tmp_path, captions=True)[1].questions
    assert (only.kind, only.question) == ("caption", CLIP_PROMPT)
    caption = clip_caption(scene, random.Random(0))
    assert sorted(only.answer[:-1].split(". ")) == sorted(caption[:-1].split(". "))
    first, *others = clips(tmp_path, more=True, inventory=True)[1].questions
    assert (first.question, first.answer) == (CLIP_DETAIL_PROMPT, clip_inventory(scene))
    assert tuple(others) == clips(tmp_path, more=True)[1].questions
