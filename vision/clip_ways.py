"""What one object of a rendered clip may do, drawn at random.

Places are drawn for the middle of a path, from a range that does not depend on its direction and its length: where an
object is half way says nothing about where it goes. And each way is as likely as the same way backwards.
"""

import math
import random
from collections.abc import Callable
from itertools import pairwise

from vision.clip_scenes import DIRECTIONS, RADIUS, Key, Way

VERBS = {
    **dict.fromkeys(DIRECTIONS, "moves"),
    "rest": "stays",
    "turn": "turns",
    "bounce": "bounces",
    "stop": "stops",
    "start": "starts",
    "grow": "grows",
    "shrink": "shrinks",
}
COUNTS = ("zero", "one", "two", "three")
EDGE = RADIUS + 0.01
"""How close the centre of an object comes to the edge of the picture, other than to bounce."""


def bounces(way: Way) -> str:
    """How often a straight or bouncing object turns back, in words."""
    return COUNTS[len(way.track) - 2]


def whole(rng: random.Random) -> tuple[float, float]:
    """The time of a way that takes the whole clip."""
    return rng.uniform(0, 0.05), 1 - rng.uniform(0, 0.05)


def straight(
    rng: random.Random,
    direction: str,
    *,
    length: float,
    reach: float,
    window: tuple[float, float],
    motion: str = "",
    anywhere: bool = False,
) -> Way:
    """`reach`: the longest path of its kind. anywhere: across its direction, too, up to the edges of the picture."""
    dx, dy = DIRECTIONS[direction]
    edge = EDGE + reach / 2
    along = rng.uniform(edge, 1 - edge)
    across = rng.uniform(EDGE, 1 - EDGE) if anywhere else rng.uniform(edge, 1 - edge)
    x, y = (along, across) if dx else (across, along)
    track = tuple(
        Key(time, x + side * dx * length / 2, y + side * dy * length / 2)
        for time, side in zip(window, (-1, 1), strict=True)
    )
    return Way(motion or direction, track)


def path(motion: str, points: list[tuple[float, float]], window: tuple[float, float]) -> Way:
    """Along points at an even speed."""
    lengths = [math.dist(a, b) for a, b in pairwise(points)]
    start, end = window
    times = [start + (end - start) * sum(lengths[:number]) / sum(lengths) for number in range(len(points))]
    return Way(motion, tuple(Key(time, x, y) for time, (x, y) in zip(times, points, strict=True)))


def move(rng: random.Random, direction: str) -> Way:
    return straight(rng, direction, length=rng.uniform(0.3, 0.5), reach=0.5, window=whole(rng))


def turn(rng: random.Random, first: str, last: str) -> Way:
    (dx, dy), (ex, ey) = DIRECTIONS[first], DIRECTIONS[last]
    one, two = rng.uniform(0.25, 0.4), rng.uniform(0.25, 0.4)
    edge = EDGE + 0.2
    x = rng.uniform(edge, 1 - edge) - (dx * one + ex * two) / 2
    y = rng.uniform(edge, 1 - edge) - (dy * one + ey * two) / 2
    corner = (x + dx * one, y + dy * one)
    return path("turn", [(x, y), corner, (corner[0] + ex * two, corner[1] + ey * two)], whole(rng))


def bounce(rng: random.Random, times: int) -> Way:
    if times == 0:
        length = rng.uniform(0.35, 0.6)
        direction = rng.choice(tuple(DIRECTIONS))
        return straight(rng, direction, length=length, reach=0.6, window=whole(rng), anywhere=True)
    width = 1 - 2 * RADIUS
    first, last = (rng.uniform(0.35, 0.8) * width for _ in range(2))
    near, far = rng.sample((RADIUS, 1 - RADIUS), 2)
    walls = [far if number % 2 == 0 else near for number in range(times)]
    inwards = [math.copysign(1, 0.5 - wall) for wall in (walls[0], walls[-1])]
    along = [walls[0] + inwards[0] * first, *walls, walls[-1] + inwards[1] * last]
    across = rng.uniform(EDGE, 1 - EDGE)
    sideways = rng.random() < 0.5
    return path("bounce", [(a, across) if sideways else (across, a) for a in along], whole(rng))


def stop(rng: random.Random, motion: str) -> Way:
    begin, end = rng.uniform(0, 0.05), rng.uniform(0.4, 0.55)
    window = (begin, end) if motion == "stop" else (1 - end, 1 - begin)
    direction = rng.choice(tuple(DIRECTIONS))
    return straight(rng, direction, length=rng.uniform(0.3, 0.5), reach=0.5, window=window, motion=motion)


def grow(rng: random.Random, motion: str) -> Way:
    small, large = rng.uniform(0.55, 0.7), rng.uniform(1.4, 1.6)
    edge = 1.6 * RADIUS + 0.01
    x, y = rng.uniform(edge, 1 - edge), rng.uniform(edge, 1 - edge)
    scales = (small, large) if motion == "grow" else (large, small)
    return Way(motion, tuple(Key(time, x, y, scale) for time, scale in zip(whole(rng), scales, strict=True)))


def rest(rng: random.Random, motion: str = "rest", shown: tuple[float, float] = (0.0, 1.0)) -> Way:
    return Way(motion, (Key(0.0, rng.uniform(EDGE, 1 - EDGE), rng.uniform(EDGE, 1 - EDGE)),), shown)


def perpendicular(direction: str) -> list[str]:
    """The directions at right angles to this one."""
    return [other for other in DIRECTIONS if (DIRECTIONS[other][0] == 0) != (DIRECTIONS[direction][0] == 0)]


ALONE: dict[str, Callable[[random.Random], Way]] = {
    "move": lambda rng: move(rng, rng.choice(tuple(DIRECTIONS))),
    "turn": lambda rng: turn(rng, first := rng.choice(tuple(DIRECTIONS)), rng.choice(perpendicular(first))),
    "bounce": lambda rng: bounce(rng, rng.randint(1, 3)),
    "stop": lambda rng: stop(rng, "stop"),
    "start": lambda rng: stop(rng, "start"),
    "grow": lambda rng: grow(rng, "grow"),
    "shrink": lambda rng: grow(rng, "shrink"),
    "rest": rest,
}
