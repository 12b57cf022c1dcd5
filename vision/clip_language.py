"""What is asked about a rendered clip: questions that one frame cannot answer, with short answers.

Few words, lower case, one wording each; the answers follow from the scene alone. The same questions asked about the
reversed scene give `reversed_answer`: a model that looks at the order of the frames gives it when the clip is played
backwards, one that does not look cannot.
"""

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from vision.clip_question import ClipQuestion
from vision.clip_scenes import DIRECTIONS, ClipScene, Key, MovingObject, Way, reverse
from vision.clip_stories import STORIES, sample_clip
from vision.clip_ways import VERBS, bounces
from vision.scenes import POSITIONS, Split

KINDS = tuple(STORIES)
REVERSIBLE = ("direction", "order", "hit", "place")
"""Kinds of which every answer is another one when the clip is played backwards."""
CHOICES = 4
"""Options of a question at most."""

_Asked = tuple[str, str, int]  # question, answer, number of the object that it is about


def clip_sample(
    index: int, *, seed: int, split: Split, kinds: Sequence[str] = KINDS, alone: bool = False
) -> tuple[ClipScene, ClipQuestion]:
    """Sample `index` of the data set: a scene for `vision.clip_scenes.render_clip`, and a question about it.

    A pure function of its arguments. First the kind is drawn, then the answer, each equally likely, then a scene in
    which it is true. In the split "held_out" the question is about an object that training never shows. With `alone`
    (`kinds` among `ALONE_KINDS`) that object is the only one.
    """
    rng = random.Random(f"clip {seed} {split} {index}")  # seeding by a string does not depend on the process
    kind = rng.choice(kinds)
    scene, answer = sample_clip(rng, kind=kind, split=split, alone=alone)
    lead = scene.objects[0].name
    asked = [q for q in questions_by_kind(scene)[kind] if q.subject == 0 and q.answer in (answer, lead)]
    return scene, rng.choice(asked)


def questions_by_kind(scene: ClipScene) -> dict[str, list[ClipQuestion]]:
    """All questions by kind (`KINDS`); kinds that the scene does not allow are absent. A pure function."""
    backwards = reverse(scene)
    found: dict[str, list[ClipQuestion]] = {}
    for kind, ask in _ASK.items():
        then = {question: answer for question, answer, _ in ask(backwards)}
        found[kind] = [_with_options(scene, kind, one, then.get(one[0])) for one in ask(scene)]
    return {kind: asked for kind, asked in found.items() if asked}


def _with_options(scene: ClipScene, kind: str, asked: _Asked, backwards: str | None) -> ClipQuestion:
    question, answer, subject = asked
    rng = random.Random(f"{question} {scene!r}")
    names = [thing.name for thing in scene.objects if thing.name not in question]
    pool = names if answer in names else list(STORIES[kind].answers)
    options = list(dict.fromkeys([answer, backwards or answer]))
    others = [other for other in pool if other not in options]
    options += rng.sample(others, min(len(others), CHOICES - len(options)))
    rng.shuffle(options)
    return ClipQuestion(kind, question, answer, backwards, tuple(options), subject)


def _ask_direction(scene: ClipScene) -> list[_Asked]:
    found = []
    for number, thing in enumerate(scene.objects):
        if thing.motion in DIRECTIONS:
            found.append((f"which way does the {thing.name} move?", thing.motion, number))
        elif thing.motion == "turn":
            start, corner, end = thing.way.track
            found.append((f"which way does the {thing.name} move before it turns?", _direction(start, corner), number))
            found.append((f"which way does the {thing.name} move after it turns?", _direction(corner, end), number))
    return found


def _ask_order(scene: ClipScene) -> list[_Asked]:
    appearing = [(thing.way.shown[0], number) for number, thing in enumerate(scene.objects) if thing.motion == "appear"]
    found = _first_and_last(scene, "appears", sorted(appearing))
    movers = _movers(scene)
    windows = sorted((way.track[0].time, way.track[-1].time, number) for number, way in movers)
    if all(before[1] < after[0] for before, after in pairwise(windows)):
        found += _first_and_last(scene, "moves", [(start, number) for start, _, number in windows])
    return found


def _first_and_last(scene: ClipScene, verb: str, ordered: list[tuple[float, int]]) -> list[_Asked]:
    if len(ordered) < 2:
        return []
    ends = {"first": ordered[0][1], "last": ordered[-1][1]}
    return [(f"which object {verb} {rank}?", scene.objects[n].name, n) for rank, n in ends.items()]


def _ask_bounces(scene: ClipScene) -> list[_Asked]:
    return [
        (f"how many times does the {thing.name} bounce?", bounces(thing.way), number)
        for number, thing in enumerate(scene.objects)
        if thing.motion == "bounce" or thing.motion in DIRECTIONS
    ]


def _ask_speed(scene: ClipScene) -> list[_Asked]:
    speeds = sorted((_speed(way), number) for number, way in _movers(scene))
    found = []
    if len(speeds) > 1 and speeds[-1][0] > 1.35 * speeds[-2][0]:
        found.append(("which object moves fastest?", scene.objects[speeds[-1][1]].name, speeds[-1][1]))
    if len(speeds) > 1 and speeds[1][0] > 1.35 * speeds[0][0]:
        found.append(("which object moves slowest?", scene.objects[speeds[0][1]].name, speeds[0][1]))
    return found


def _ask_hit(scene: ClipScene) -> list[_Asked]:
    wordings = {"hit": "which object hits another?", "pushed": "which object is hit?"}
    return [
        (wordings[thing.motion], thing.name, number)
        for number, thing in enumerate(scene.objects)
        if thing.motion in wordings
    ]


def _ask_swap(scene: ClipScene) -> list[_Asked]:
    pair = [(number, thing.name) for number, thing in enumerate(scene.objects) if thing.motion == "swap"]
    if len(pair) != 2 or len(scene.objects) < 3:
        return []
    return [
        (f"what does the {other} swap places with?", name, number) for (number, name), (_, other) in (pair, pair[::-1])
    ]


def _ask_place(scene: ClipScene) -> list[_Asked]:
    found = []
    for number, thing in enumerate(scene.objects):
        start, end = _cell(thing.way.track[0]), _cell(thing.way.track[-1])
        if thing.motion in DIRECTIONS and start and end and start != end:
            found.append((f"where does the {thing.name} start?", start, number))
            found.append((f"where does the {thing.name} end?", end, number))
    return found


def _ask_motion(scene: ClipScene) -> list[_Asked]:
    return [
        (f"what does the {thing.name} do?", VERBS[thing.motion], number)
        for number, thing in enumerate(scene.objects)
        if thing.motion in VERBS and not _moves_for_a_while(thing)
    ]


_ASK: dict[str, Callable[[ClipScene], list[_Asked]]] = {
    "direction": _ask_direction,
    "order": _ask_order,
    "bounces": _ask_bounces,
    "speed": _ask_speed,
    "hit": _ask_hit,
    "swap": _ask_swap,
    "place": _ask_place,
    "motion": _ask_motion,
}


def _movers(scene: ClipScene) -> list[tuple[int, Way]]:
    """Objects that move straight, with their numbers; none where others move in another manner."""
    if any(thing.motion != "rest" and thing.motion not in DIRECTIONS for thing in scene.objects):
        return []
    return [(number, thing.way) for number, thing in enumerate(scene.objects) if thing.motion in DIRECTIONS]


def _moves_for_a_while(thing: MovingObject) -> bool:
    """It moves straight in a part of the clip: might be said to stop, or to start."""
    return thing.motion in DIRECTIONS and thing.way.track[-1].time - thing.way.track[0].time < 0.85


def _speed(way: Way) -> float:
    start, end = way.track[0], way.track[-1]
    return math.hypot(end.x - start.x, end.y - start.y) / (end.time - start.time)


def _direction(start: Key, end: Key) -> str:
    across, down = end.x - start.x, end.y - start.y
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def _cell(key: Key) -> str | None:
    """Name of the cell of the 3 x 3 grid, None close to a border between two."""
    close = any(abs(value - border) < 0.03 for value in (key.x, key.y) for border in (1 / 3, 2 / 3))
    return None if close else POSITIONS[int(key.y * 3)][int(key.x * 3)]
