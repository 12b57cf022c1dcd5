"""Drawing clip scenes: for a kind of question, a clip in which a given answer is true, and all else is left to chance.

The answer is drawn first, so that all answers of a kind are equally likely; the ways of the objects are drawn next, and
what they look like last. Everything is symmetric in time: a clip is as likely as the same clip played backwards. So the
frame in the middle, or all frames without their order, never favour an answer over the one that is true backwards.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, permutations

from vision.clip_scenes import DIRECTIONS, RADIUS, ClipScene, Key, MovingObject, Way, is_held_out
from vision.clip_ways import ALONE, COUNTS, EDGE, VERBS, bounce, move, path, perpendicular, rest, straight, turn, whole
from vision.scenes import ALL_PAIRS, POSITIONS, Pair, Split

_TIMES = [step * 37 % 61 / 60 for step in range(61)]  # all over the clip: what overlaps is soon found
_TOUCH = 0.18  # from centre to centre: circles overlap a little, so that triangles touch at all


def sample_clip(rng: random.Random, *, kind: str, split: Split, alone: bool = False) -> tuple[ClipScene, str]:
    """Draw a clip for a question of `kind` (of `STORIES`), and which of `STORIES[kind].answers` is true in it.

    Where the answer to a question is an object, it is the first one, and the one drawn here says what that does. In
    "train" no object is held out (`is_held_out`), in "held_out" the first one is. With `alone`, nothing joins the one
    object that the story tells of (of a kind among `ALONE_KINDS`).
    """
    story = STORIES[kind]
    answer = rng.choice(story.answers)
    ways = _draw_apart(rng, lambda: story.tell(rng, answer))
    for _ in range(0 if alone else rng.choice(story.companions)):
        ways += _companion(rng, ways)
    if kind == "swap" and len(ways) < 3:  # with two objects there would be nothing to ask
        return sample_clip(rng, kind=kind, split=split)
    shade = rng.randint(222, 248)
    red, green, blue = (shade + rng.randint(-7, 7) for _ in range(3))
    return ClipScene(_dress(rng, ways, split), (red, green, blue)), answer


def _draw_apart(rng: random.Random, draw: Callable[[], list[Way]]) -> list[Way]:
    while True:
        ways = draw()
        if all(_apart(a, b) for a, b in combinations(ways, 2) if {a.motion, b.motion} != {"hit", "pushed"}):
            return ways


def _companion(rng: random.Random, ways: list[Way]) -> list[Way]:
    """One more object that does something of its own, or none where no room is found for it."""
    motion = rng.choice(tuple(ALONE))
    for _ in range(30):
        way = ALONE[motion](rng)
        if all(_apart(way, other) for other in ways):
            return [way]
    return []


def _apart(first: Way, second: Way) -> bool:
    for time in _TIMES:
        a, b = first.at(time), second.at(time)
        if a and b and math.hypot(a.x - b.x, a.y - b.y) < 1.05 * RADIUS * (a.scale + b.scale):
            return False
    return True


def _dress(rng: random.Random, ways: list[Way], split: Split) -> tuple[MovingObject, ...]:
    """Give each a colour and a shape, none twice, often alike in one of them, so that the other one matters."""
    things: list[MovingObject] = []
    for way in ways:
        pool = [pair for pair in ALL_PAIRS if pair not in {thing.pair for thing in things}]
        if split == "train" or (split == "held_out" and not things):
            pool = [pair for pair in pool if is_held_out(pair, way.motion) == (split == "held_out")]
        colour, shape = rng.choice(_alike(rng, pool, things[0].pair) if things else pool)
        tilt, shade = rng.uniform(-8, 8), rng.uniform(0.92, 1.04)
        things.append(MovingObject(shape, colour, way, tilt=tilt, shade=shade))
    return tuple(things)


def _alike(rng: random.Random, pool: list[Pair], first: Pair) -> list[Pair]:
    part = rng.choice((0, 1, None, None, None))
    return pool if part is None else [pair for pair in pool if pair[part] == first[part]] or pool


# Stories: the ways of the objects that make an answer true, the one that is asked about first.


def _tell_direction(rng: random.Random, answer: str) -> list[Way]:
    if rng.random() < 0.6:
        return [move(rng, answer)]
    other = rng.choice(perpendicular(answer))
    return [turn(rng, *((answer, other) if rng.random() < 0.5 else (other, answer)))]


def _tell_motion(rng: random.Random, answer: str) -> list[Way]:
    return [ALONE[rng.choice([alone for alone in ALONE if VERBS.get(alone, "moves") == answer])](rng)]


def _tell_bounces(rng: random.Random, answer: str) -> list[Way]:
    return [bounce(rng, COUNTS.index(answer))]


def _tell_place(rng: random.Random, answer: str) -> list[Way]:
    """From cell to cell in a row or a column of the 3 x 3 grid; the answer is where it starts or where it ends."""
    row, column = next((r, c) for r, names in enumerate(POSITIONS) for c, name in enumerate(names) if name == answer)
    others = [(row, c) for c in range(3) if c != column] + [(r, column) for r in range(3) if r != row]
    cells = [(row, column), rng.choice(others)]
    if rng.random() < 0.5:
        cells.reverse()
    (top, left), (bottom, right) = cells
    direction = ("right" if right > left else "left") if top == bottom else ("down" if bottom > top else "up")
    dx, _ = DIRECTIONS[direction]
    keys = []
    aside = rng.uniform(-0.04, 0.04)
    for time, (r, c) in zip(whole(rng), cells, strict=True):
        along = rng.uniform(-0.04, 0.04)
        x, y = (along, aside) if dx else (aside, along)
        keys.append(Key(time, (c + 0.5) / 3 + x, (r + 0.5) / 3 + y))
    return [Way(direction, tuple(keys))]


def _tell_speed(rng: random.Random, answer: str) -> list[Way]:
    ranges = [(0.14, 0.2), (0.28, 0.34), (0.48, 0.6)]
    if rng.random() < 0.5:
        del ranges[1]
    shared = whole(rng)
    ways = [
        straight(
            rng, rng.choice(tuple(DIRECTIONS)), length=rng.uniform(*lengths), reach=0.6, window=shared, anywhere=True
        )
        for lengths in ranges
    ]
    return ways if answer == "slowest" else ways[::-1]


def _tell_order(rng: random.Random, answer: str) -> list[Way]:
    what, rank = answer.split()
    count = rng.choice((2, 3))
    ways = (_appearing if what == "appears" else _moving_in_turn)(rng, count)
    return ways if rank == "first" else ways[::-1]


def _moving_in_turn(rng: random.Random, count: int) -> list[Way]:
    slots = [(0.03, 0.45), (0.55, 0.97)] if count == 2 else [(0.02, 0.31), (0.36, 0.64), (0.69, 0.98)]
    return [
        straight(
            rng,
            rng.choice(tuple(DIRECTIONS)),
            length=rng.uniform(0.25, 0.4),
            reach=0.4,
            window=(start + rng.uniform(0, 0.04), end - rng.uniform(0, 0.04)),
            anywhere=True,
        )
        for start, end in slots
    ]


def _appearing(rng: random.Random, count: int) -> list[Way]:
    """In order; they vanish in such an order that the first and the last one are other ones backwards."""
    slots = [(0.08, 0.2), (0.3, 0.42)] if count == 2 else [(0.04, 0.1), (0.2, 0.26), (0.36, 0.43)]
    orders = [order for order in permutations(range(count)) if order[0] != count - 1 and order[-1] != 0]
    appear = [rng.uniform(*slot) for slot in slots]
    vanish = [1 - rng.uniform(*slot) for slot in reversed(slots)]
    ranks = rng.choice(orders)
    return [rest(rng, "appear", (start, vanish[rank])) for start, rank in zip(appear, ranks, strict=True)]


def _tell_hit(rng: random.Random, answer: str) -> list[Way]:
    """One moves until it touches the other, which moves on at the same speed: billiard balls."""
    direction = rng.choice(tuple(DIRECTIONS))
    dx, dy = DIRECTIONS[direction]
    before, after = rng.uniform(0.18, 0.27), rng.uniform(0.18, 0.27)
    contact = rng.uniform(0.44, 0.56)
    speed = max(before / (contact - 0.02), after / (0.98 - contact)) * rng.uniform(1, 1.5)
    length = before + _TOUCH + after
    along, across = rng.uniform(0.47, 0.53), rng.uniform(EDGE, 1 - EDGE)

    def key(time: float, place: float) -> Key:
        at = along + (dx + dy) * (place - length / 2)
        return Key(time, *((at, across) if dx else (across, at)))

    hit = Way("hit", (key(contact - before / speed, 0), key(contact, before)))
    pushed = Way("pushed", (key(contact, before + _TOUCH), key(contact + after / speed, length)))
    return [hit, pushed] if answer == "hits" else [pushed, hit]


def _tell_swap(rng: random.Random, _: str) -> list[Way]:
    """Two objects go half way round each other; the one that is the answer comes first."""
    distance, angle, sense = rng.uniform(0.32, 0.46), rng.uniform(0, 2 * math.pi), rng.choice((-1, 1))
    edge = EDGE + 0.23
    x, y = rng.uniform(edge, 1 - edge), rng.uniform(edge, 1 - edge)
    between = rng.uniform(0.05, 0.2), 1 - rng.uniform(0.05, 0.2)
    ways = []
    for begin in (angle, angle + math.pi):
        turns = [begin + sense * math.pi * step / 12 for step in range(13)]
        ways.append(
            path("swap", [(x + math.cos(t) * distance / 2, y + math.sin(t) * distance / 2) for t in turns], between)
        )
    return ways


@dataclass(frozen=True)
class Story:
    """What a kind of question needs: its answers, the ways that make one true, and how many objects may join."""

    answers: tuple[str, ...]
    tell: Callable[[random.Random, str], list[Way]]
    companions: tuple[int, ...]


STORIES = {
    "direction": Story(tuple(DIRECTIONS), _tell_direction, (0, 1, 2)),
    "order": Story(("moves first", "moves last", "appears first", "appears last"), _tell_order, (0,)),
    "bounces": Story(COUNTS, _tell_bounces, (0, 1)),
    "speed": Story(("fastest", "slowest"), _tell_speed, (0,)),
    "hit": Story(("hits", "is hit"), _tell_hit, (0, 1)),
    "swap": Story(("swaps",), _tell_swap, (1,)),
    "place": Story(tuple(name for row in POSITIONS for name in row), _tell_place, (0, 1, 2)),
    "motion": Story(tuple(dict.fromkeys(VERBS.values())), _tell_motion, (0, 1, 2)),
}

ALONE_KINDS = ("direction", "bounces", "place", "motion")
"""Kinds of questions that a single object is enough for."""
