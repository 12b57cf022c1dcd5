"""Rendered clips: objects are where their track says, backwards is backwards, the training set stays fair."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vision.clip_scenes import (
    DIRECTIONS,
    HELD_OUT_MOTIONS,
    MOTIONS,
    RADIUS,
    ClipScene,
    Key,
    MovingObject,
    Way,
    is_held_out,
    render_clip,
    render_frame,
    reverse,
)
from vision.clip_stories import STORIES, sample_clip
from vision.scenes import COLOURS, SHAPES

PATH = Way("turn", (Key(0.2, 0.2, 0.3), Key(0.4, 0.6, 0.3, 1.2), Key(0.8, 0.6, 0.7, 2.0)), (0.1, 0.95))


def one(way: Way, shape: str = "circle") -> ClipScene:
    return ClipScene((MovingObject(shape, "blue", way),))


def ink(scene: ClipScene, time: float, size: int = 120) -> np.ndarray:
    pixels = np.asarray(render_frame(scene, time, size=size), dtype=np.int16)
    return (abs(pixels - np.array(scene.background)) > 40).any(axis=2)


def test_an_object_rests_moves_evenly_and_is_not_always_shown() -> None:
    assert PATH.at(0.05) is None and PATH.at(0.99) is None
    assert PATH.at(0.15) == Key(0.15, 0.2, 0.3)
    middle = PATH.at(0.3)
    assert middle is not None and (middle.x, middle.y, middle.scale) == pytest.approx((0.4, 0.3, 1.1))
    assert PATH.at(0.9) == Key(0.9, 0.6, 0.7, 2.0)


@pytest.mark.parametrize("time", [0.12, 0.3, 0.5, 0.72, 0.9])
def test_what_is_drawn_is_where_the_track_says(time: float) -> None:
    place = PATH.at(time)
    assert place is not None
    for size in (64, 120):
        ys, xs = np.nonzero(ink(one(PATH), time, size))
        assert ((xs.mean() + 0.5) / size, (ys.mean() + 0.5) / size) == pytest.approx((place.x, place.y), abs=0.01)
        assert (xs.max() - xs.min()) / size == pytest.approx(2 * RADIUS * place.scale, abs=0.03)
    assert not ink(one(PATH), 0.05).any() and not ink(one(PATH), 0.97).any()


def test_frames_are_taken_at_the_centres_of_equal_intervals() -> None:
    scene = one(Way("right", (Key(0.0, 0.2, 0.5), Key(1.0, 0.8, 0.5))))
    for count in (1, 4, 16):
        frames = render_clip(scene, frames=count, size=64)
        assert [frame.size for frame in frames] == [(64, 64)] * count
        for number, frame in enumerate(frames):
            assert frame.tobytes() == render_frame(scene, (number + 0.5) / count, size=64).tobytes()
        places = [np.nonzero(np.asarray(frame)[:, :, 0] < 120)[1].mean() / 64 for frame in frames]
        assert places == pytest.approx([0.2 + 0.6 * (i + 0.5) / count for i in range(count)], abs=0.02)


def test_the_reverse_of_a_scene_is_its_clip_played_backwards() -> None:
    rng = random.Random(0)
    for kind in STORIES:
        for _ in range(4):
            scene, _ = sample_clip(rng, kind=kind, split="any")
            forwards, backwards = (render_clip(s, frames=7, size=48) for s in (scene, reverse(scene)))
            for a, b in zip(forwards, reversed(backwards), strict=True):
                assert np.abs(np.asarray(a, int) - np.asarray(b, int)).mean() < 0.1  # rounding at an edge
            again = reverse(reverse(scene))
            for thing, twice in zip(scene.objects, again.objects, strict=True):
                assert twice.motion == thing.motion and twice.pair == thing.pair
                for key, same in zip(thing.way.track, twice.way.track, strict=True):
                    assert same.time == pytest.approx(key.time) and (same.x, same.y) == (key.x, key.y)


def test_all_shapes_and_colours_of_the_scenes_can_be_seen() -> None:
    way = Way("rest", (Key(0.0, 0.5, 0.5),))
    seen: set[bytes] = set()
    for shape in SHAPES:
        for colour in COLOURS:
            image = render_frame(ClipScene((MovingObject(shape, colour, way),)), 0.5, size=64)
            assert isinstance(image, Image.Image) and image.mode == "RGB"
            seen.add(image.tobytes())
    assert len(seen) == len(SHAPES) * len(COLOURS)


def test_held_out_motions_are_a_fair_share_and_favour_no_answer() -> None:
    moving = [motion for motion in MOTIONS if motion != "rest"]
    assert 0.1 < len(HELD_OUT_MOTIONS) / (len(COLOURS) * len(moving)) < 0.2
    assert Counter(colour for colour, _ in HELD_OUT_MOTIONS) == dict.fromkeys(COLOURS, 2)
    by_motion = Counter(motion for _, motion in HELD_OUT_MOTIONS)
    assert set(by_motion) == set(moving)
    assert len({by_motion[direction] for direction in DIRECTIONS}) == 1
    for first, second in (("stop", "start"), ("grow", "shrink"), ("hit", "pushed")):
        assert by_motion[first] == by_motion[second]
    assert is_held_out(("red", "circle"), "left") and not is_held_out(("red", "circle"), "right")
    assert is_held_out(("red", "star"), "right")
    scene = one(replace(PATH, motion="down"))
    assert scene.held_out and not one(PATH).held_out  # blue things never move down in training
