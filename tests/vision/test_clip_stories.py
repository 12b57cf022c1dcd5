"""Drawn clips: splits hold what they promise, objects keep apart, answers are balanced, time is symmetric."""

import math
import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from vision.clip_scenes import DIRECTIONS, HELD_OUT_MOTIONS, RADIUS, ClipScene, is_held_out, reverse
from vision.clip_stories import ALONE_KINDS, STORIES, sample_clip
from vision.scenes import HELD_OUT, Split

TIMES = [step / 50 for step in range(51)]


def many(kind: str, split: Split = "any", count: int = 30) -> list[tuple[ClipScene, str]]:
    rng = random.Random(1)
    return [sample_clip(rng, kind=kind, split=split) for _ in range(count)]


def distance(scene: ClipScene, first: int, second: int, time: float) -> float:
    a, b = (scene.objects[number].way.at(time) for number in (first, second))
    return math.inf if a is None or b is None else math.hypot(a.x - b.x, a.y - b.y) - RADIUS * (a.scale + b.scale)


def test_splits_hold_what_they_promise() -> None:
    for kind in STORIES:
        assert not any(scene.held_out for scene, _ in many(kind, "train"))
    leads = [scene.objects[0] for kind in STORIES for scene, _ in many(kind, "held_out", 50)]
    assert all(is_held_out(thing.pair, thing.motion) for thing in leads)
    assert {thing.pair for thing in leads} >= HELD_OUT
    assert {(thing.colour, thing.motion) for thing in leads} >= HELD_OUT_MOTIONS


@pytest.mark.parametrize("kind", STORIES)
def test_objects_are_few_have_different_names_keep_apart_and_stay_in_the_picture(kind: str) -> None:
    counts = Counter()
    for scene, _ in many(kind):
        counts[len(scene.objects)] += 1
        assert len({thing.name for thing in scene.objects}) == len(scene.objects)
        for time in TIMES:
            for place in (thing.way.at(time) for thing in scene.objects):
                if place is not None:
                    margin = RADIUS * place.scale - 1e-9
                    assert margin <= place.x <= 1 - margin and margin <= place.y <= 1 - margin
            for first, second in combinations(range(len(scene.objects)), 2):
                meet = {scene.objects[n].motion for n in (first, second)} == {"hit", "pushed"}
                assert distance(scene, first, second, time) > (-0.021 if meet else -0.03)
    assert set(counts) == {3} if kind == "swap" else len(counts) > 1 and set(counts) <= {1, 2, 3}


def test_alone_is_alone() -> None:
    rng = random.Random(4)
    for kind in ALONE_KINDS:
        assert all(len(sample_clip(rng, kind=kind, split="train", alone=True)[0].objects) == 1 for _ in range(20))


@pytest.mark.parametrize("kind", [kind for kind in STORIES if kind != "swap"])  # which has no answer to choose
def test_answers_are_equally_likely(kind: str) -> None:
    rng = random.Random(2)
    drawn = Counter(sample_clip(rng, kind=kind, split="train")[1] for _ in range(240))
    answers = STORIES[kind].answers
    assert set(drawn) == set(answers)
    expected = 240 / len(answers)
    assert all(abs(count - expected) < 4 * math.sqrt(expected) for count in drawn.values())


def test_the_one_that_hits_touches_the_other_and_stops() -> None:
    for scene, answer in many("hit"):
        hit, pushed = (0, 1) if answer == "hits" else (1, 0)
        ways = [scene.objects[number].way for number in (hit, pushed)]
        contact = ways[0].track[-1].time
        assert contact == ways[1].track[0].time
        gaps = [distance(scene, hit, pushed, time) for time in (0.0, contact, 1.0)]
        assert abs(gaps[1]) < 0.03 and min(gaps[0], gaps[2]) > 0.1


def test_those_who_appear_are_all_there_in_the_middle_and_leave_in_another_order() -> None:
    for scene, answer in many("order", count=60):
        if answer.startswith("appears"):
            shown = [thing.way.shown for thing in scene.objects]
            assert all(start < 0.44 and end > 0.56 for start, end in shown)
            by_start, by_end = (sorted(range(len(shown)), key=lambda n, end=end: shown[n][end]) for end in (0, 1))
            assert by_start[0] != by_end[-1] and by_start[-1] != by_end[0]


def test_the_middle_frame_does_not_tell_the_direction() -> None:
    rng = random.Random(3)
    places: dict[str, list[tuple[float, float]]] = {direction: [] for direction in DIRECTIONS}
    for _ in range(400):
        scene, answer = sample_clip(rng, kind="direction", split="any")
        way = scene.objects[0].way
        place = way.at((way.track[0].time + way.track[-1].time) / 2)
        assert place is not None
        if way.motion in DIRECTIONS:
            places[answer].append((place.x, place.y))
    for found in places.values():
        error = np.std(found, axis=0) / math.sqrt(len(found))
        assert (abs(np.mean(found, axis=0) - 0.5) < 4 * error).all()
    spread = [np.std(found, axis=0) for found in places.values()]
    assert np.ptp(spread, axis=0).max() < 0.02


def test_time_is_symmetric() -> None:
    # What is true of clips is equally often true of clips played backwards.
    rng = random.Random(4)
    for kind in ("direction", "order", "hit", "motion", "place", "bounces"):
        forwards: Counter[str] = Counter()
        backwards: Counter[str] = Counter()
        for _ in range(150):
            scene, _ = sample_clip(rng, kind=kind, split="any")
            forwards.update(thing.motion for thing in scene.objects)
            backwards.update(thing.motion for thing in reverse(scene).objects)
        for motion in forwards | backwards:
            assert abs(forwards[motion] - backwards[motion]) < 5 * math.sqrt(forwards[motion] + backwards[motion] + 1)
