"""Questions about clips: true, also backwards, unambiguous, balanced, and never answered by a single frame."""

import hashlib
import math
import re
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest

from vision.clip import read_clip
from vision.clip_language import KINDS, REVERSIBLE, clip_sample, questions_by_kind
from vision.clip_question import ClipQuestion, multiple_choice
from vision.clip_scenes import DIRECTIONS, HELD_OUT_MOTIONS, ClipScene, MovingObject, is_held_out, render_clip, reverse
from vision.clip_writing import write_mp4
from vision.scene_language import NUMBERS
from vision.scenes import HELD_OUT, POSITIONS, Split

STEPS = 240


def samples(count: int, split: Split = "any", kinds: tuple[str, ...] = KINDS) -> list[tuple[ClipScene, ClipQuestion]]:
    return [clip_sample(index, seed=3, split=split, kinds=kinds) for index in range(count)]


@pytest.mark.parametrize("split", ["train", "held_out", "any"])
def test_answers_are_true_forwards_and_backwards(split: Split) -> None:
    seen: set[str] = set()
    for scene, question in samples(50, split):
        for asked in questions_by_kind(scene).values():
            for other in asked:
                assert truth(scene, other.question) == other.answer, (scene, other)
                if other.reversed_answer is not None:
                    assert truth(reverse(scene), other.question) == other.reversed_answer, (scene, other)
                seen.add(other.kind)
        assert question in questions_by_kind(scene)[question.kind]
    assert seen == set(KINDS)


def test_backwards_another_answer_is_right() -> None:
    for _, question in samples(150, kinds=REVERSIBLE):
        assert question.reversed_answer not in (None, question.answer), question
    changed = Counter(q.kind for _, q in samples(150) if q.reversed_answer not in (None, q.answer))
    assert {"bounces", "speed", "swap"}.isdisjoint(changed) and changed["motion"] > 0


def test_one_frame_is_not_enough() -> None:
    # The frame in the middle is the same forwards and backwards, and so are all frames without their order.
    for scene, question in samples(40, kinds=REVERSIBLE):
        forwards, backwards = (render_clip(s, frames=5, size=48) for s in (scene, reverse(scene)))
        assert np.abs(np.asarray(forwards[2], int) - np.asarray(backwards[2], int)).mean() < 0.1
        assert truth(scene, question.question) != truth(reverse(scene), question.question)


def test_same_sample_in_another_process() -> None:
    code = (
        "import hashlib; from vision.clip_language import clip_sample; from vision.clip_scenes import render_clip\n"
        "for index in range(6):\n"
        "    scene, question = clip_sample(index, seed=5, split='train')\n"
        "    frames = b''.join(frame.tobytes() for frame in render_clip(scene, frames=3, size=32))\n"
        "    print(hashlib.sha256(frames + repr((scene, question)).encode()).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    here = []
    for index in range(6):
        scene, question = clip_sample(index, seed=5, split="train")
        frames = b"".join(frame.tobytes() for frame in render_clip(scene, frames=3, size=32))
        here.append(hashlib.sha256(frames + repr((scene, question)).encode()).hexdigest())
    assert here == elsewhere and len(set(here)) == 6
    base = clip_sample(0, seed=5, split="train")
    assert base != clip_sample(0, seed=6, split="train") and base != clip_sample(0, seed=5, split="any")


def test_kinds_and_answers_are_balanced() -> None:
    drawn = [question for _, question in samples(560, "train")]
    kinds = Counter(question.kind for question in drawn)
    assert set(kinds) == set(KINDS)
    assert all(abs(count - 70) < 4 * math.sqrt(70) for count in kinds.values())
    for kind, answers in (("direction", 4), ("bounces", 4), ("motion", 8), ("place", 9)):
        counts = Counter(question.answer for question in drawn if question.kind == kind)
        expected = kinds[kind] / answers
        assert len(counts) == answers
        assert all(abs(count - expected) < 4.5 * math.sqrt(expected) for count in counts.values()), counts
    for kind in ("order", "speed", "hit", "swap"):
        names = Counter(question.answer for question in drawn if question.kind == kind)
        assert max(names.values()) < 0.2 * kinds[kind]


def test_kinds_can_be_narrowed() -> None:
    assert {question.kind for _, question in samples(30, kinds=("hit", "speed"))} == {"hit", "speed"}


def test_questions_are_unambiguous_short_and_their_vocabulary_is_small() -> None:
    words: set[str] = set()
    for scene, _ in samples(100):
        answers: dict[str, str] = {}
        for question in chain(*questions_by_kind(scene).values()):
            assert answers.setdefault(question.question, question.answer) == question.answer
            assert re.fullmatch(r"[a-z ]+\?", question.question)
            assert 1 <= len(question.answer.split()) <= 2
            words.update(re.findall(r"\w+", question.question + " " + question.answer))
    assert len(words) <= 80


def test_training_never_says_a_held_out_pair_and_the_other_split_asks_about_nothing_else() -> None:
    names = [f"{colour} {shape}" for colour, shape in HELD_OUT]
    for scene, _ in samples(100, "train"):
        for question in chain(*questions_by_kind(scene).values()):
            assert not any(name in text for name in names for text in (question.question, *question.options))
        assert not any((thing.colour, thing.motion) in HELD_OUT_MOTIONS for thing in scene.objects)
    for scene, question in samples(100, "held_out"):
        lead = scene.objects[question.subject]
        assert is_held_out(lead.pair, lead.motion)
        assert lead.name in (question.answer, *re.findall(r"the (\w+ \w+)", question.question))


def test_options_hold_both_answers_in_any_place() -> None:
    places: Counter[int] = Counter()
    for scene, question in samples(250):
        options = question.options
        assert 2 <= len(options) <= 4 and len(set(options)) == len(options)
        assert question.answer in options and (question.reversed_answer or question.answer) in options
        if question.answer in [thing.name for thing in scene.objects]:
            assert set(options) <= {thing.name for thing in scene.objects}
            assert not any(name in question.question for name in options)
        else:
            assert len(options) == 4
            places[options.index(question.answer)] += 1
    assert max(places.values()) < 2 * min(places.values())


def test_multiple_choice_spells_the_options_out() -> None:
    question = ClipQuestion("direction", "which way?", "up", "down", ("left", "up", "down"), 0)
    choice = multiple_choice(question)
    assert choice.question == "which way? (a) left (b) up (c) down"
    assert (choice.answer, choice.reversed_answer, choice.options) == ("b", "c", ("a", "b", "c"))
    assert choice.kind == "direction" and choice.subject == 0
    still = ClipQuestion("swap", "what?", "red star", None, ("red star", "pink ring"), 0)
    assert multiple_choice(still).reversed_answer is None


def test_written_and_read_again_a_clip_shows_the_same(tmp_path: Path) -> None:
    scene, _ = clip_sample(1, seed=0, split="train")
    frames = render_clip(scene, frames=16, size=64)
    write_mp4(frames, tmp_path / "a.mp4", fps=8)
    clip = read_clip(tmp_path / "a.mp4", count=16)
    assert clip.positions == pytest.approx([i / 16 for i in range(16)])
    for drawn, read in zip(frames, clip.frames, strict=True):
        assert np.abs(np.asarray(drawn, int) - np.asarray(read, int)).mean() < 5


# An independent reading of the questions, from where the objects are seen to be.


def places(thing: MovingObject) -> np.ndarray:
    """(x, y, scale) at equal steps of the time; not a number while it is not shown."""
    seen = [thing.way.at(step / STEPS) for step in range(STEPS + 1)]
    return np.array([(np.nan,) * 3 if key is None else (key.x, key.y, key.scale) for key in seen])


def named(scene: ClipScene, name: str) -> MovingObject:
    (found,) = [thing for thing in scene.objects if name == f"{thing.colour} {thing.shape}"]
    return found


def way_of(step: np.ndarray) -> str:
    (direction,) = [d for d, v in DIRECTIONS.items() if np.dot(v, step[:2]) > 0.9 * np.hypot(*step[:2])]
    return direction


def moving(thing: MovingObject) -> np.ndarray:
    """Numbers of the steps in which it moves."""
    return np.flatnonzero(np.hypot(*np.diff(places(thing)[:, :2], axis=0).T) > 1e-6)


def speed(thing: MovingObject) -> float:
    steps = np.hypot(*np.diff(places(thing)[:, :2], axis=0).T)
    return float(steps.max())


def turns_back(thing: MovingObject) -> int:
    path = places(thing)[:, :2]
    steps = np.diff(path, axis=0)
    axis = int(np.ptp(path[:, 1]) > np.ptp(path[:, 0]))
    signs = [s for s in np.sign(np.round(steps[:, axis], 9)) if s]
    return sum(a != b for a, b in pairwise(signs))


def deed(thing: MovingObject) -> str:
    path, steps = places(thing), moving(thing)
    if path[-1, 2] != path[0, 2]:
        return "grows" if path[-1, 2] > path[0, 2] else "shrinks"
    if not len(steps):
        return "stays"
    if turns_back(thing):
        return "bounces"
    first, last = (np.diff(path, axis=0)[i] for i in (steps[3], steps[-3]))
    if way_of(first) != way_of(last):
        return "turns"
    return "starts" if steps[0] > STEPS / 3 else "stops" if steps[-1] < STEPS * 2 / 3 else "moves"


def cell(place: np.ndarray) -> str:
    return POSITIONS[int(place[1] * 3)][int(place[0] * 3)]


def truth(scene: ClipScene, question: str) -> str:
    things = scene.objects
    if match := re.fullmatch(r"which way does the (.+) move( before it turns| after it turns)?\?", question):
        thing = named(scene, match[1])
        path, steps = places(thing), moving(thing)
        if match[2]:
            return way_of(np.diff(path, axis=0)[steps[3] if "before" in match[2] else steps[-3]])
        return way_of(path[-1] - path[0])
    if match := re.fullmatch(r"which object (moves|appears) (first|last)\?", question):
        if match[1] == "moves":
            begins = {thing.name: moving(thing)[0] for thing in things if len(moving(thing))}
        else:
            begins = {thing.name: np.flatnonzero(~np.isnan(places(thing)[:, 0]))[0] for thing in things}
        return (min if match[2] == "first" else max)(begins, key=lambda name: begins[name])
    if match := re.fullmatch(r"how many times does the (.+) bounce\?", question):
        return NUMBERS[turns_back(named(scene, match[1]))]
    if match := re.fullmatch(r"which object moves (fastest|slowest)\?", question):
        speeds = {thing.name: speed(thing) for thing in things if speed(thing) > 0}
        return (max if match[1] == "fastest" else min)(speeds, key=lambda name: speeds[name])
    if match := re.fullmatch(r"which object (hits another|is hit)\?", question):
        near = {
            (a.name, b.name)
            for a in things
            for b in things
            if a is not b and np.nanmin(np.hypot(*(places(a) - places(b))[:, :2].T)) < 0.19
            if moving(a)[0] < moving(b)[0]
        }
        (pair,) = near
        return pair[match[1] == "is hit"]
    if match := re.fullmatch(r"what does the (.+) swap places with\?", question):
        one = places(named(scene, match[1]))
        (other,) = [
            thing.name
            for thing in things
            if np.allclose(places(thing)[0], one[-1]) and np.allclose(places(thing)[-1], one[0])
        ]
        return other
    if match := re.fullmatch(r"where does the (.+) (start|end)\?", question):
        return cell(places(named(scene, match[1]))[0 if match[2] == "start" else -1])
    match = re.fullmatch(r"what does the (.+) do\?", question)
    assert match, question
    return deed(named(scene, match[1]))
