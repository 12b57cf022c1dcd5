"""Built-in clips as files: real videos, made once, with the questions and captions of their scenes."""

import random
from dataclasses import replace
from pathlib import Path

from vision.builtin_clips import BuiltinClips
from vision.clip import read_clip
from vision.clip_captions import CLIP_PROMPT, clip_caption
from vision.clip_language import KINDS, clip_sample
from vision.clip_scenes import reverse


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


def test_captions_name_every_object_once(tmp_path: Path) -> None:
    for index in range(60):
        scene, _ = clip_sample(index, seed=1, split="any")
        for told in (scene, reverse(scene)):
            caption = clip_caption(told, random.Random(0))
            sentences = caption.removesuffix(".").split(". ")
            assert len(sentences) == len(scene.objects) and caption == clip_caption(told, random.Random(0))
            assert all(any(s.startswith(f"the {thing.name} ") for s in sentences) for thing in scene.objects)
    (only,) = clips(tmp_path, captions=True)[0].questions
    assert only.question == CLIP_PROMPT and only.kind == "caption"
