"""Rendered clips: an endless video data set with known truth, needing no download.

A clip scene is one to three of the shapes and colours of `vision.scenes`, each with a track through the unit square and
through the time from 0 to 1. Everything that can be seen is in the frozen `ClipScene`, so `render_clip` is a pure
function of it, at any size and number of frames, and `reverse` gives the scene that is seen when it plays backwards.
Some (colour, shape) and some (colour, motion) pairs never occur in the training split. How clips are drawn lives in
`vision.clip_stories`, what is asked about them in `vision.clip_language`.
"""

from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from vision.scenes import COLOURS, HELD_OUT, Pair, draw_shape

RADIUS = 0.1  # of an object at scale 1, as a share of the picture's side
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (
    *DIRECTIONS,
    "turn",  # a straight path with one right-angled turn
    "bounce",  # to and fro between two edges of the picture
    "stop",  # moves straight, then rests
    "start",  # rests, then moves straight
    "grow",
    "shrink",
    "appear",  # appears, and vanishes later
    "swap",  # changes places with another object
    "hit",  # moves straight until it hits another object, and rests
    "pushed",  # rests until it is hit, and moves on
    "rest",
)
_BACKWARDS = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "stop": "start",
    "start": "stop",
    "grow": "shrink",
    "shrink": "grow",
    "hit": "pushed",
    "pushed": "hit",
}

# (colour, motion): two for each colour, each motion at least once; opposites equally often, so that knowing the
# colour never favours the answer "left" over "right".
HELD_OUT_MOTIONS: frozenset[Pair] = frozenset(
    {
        ("red", "left"),
        ("red", "grow"),
        ("orange", "up"),
        ("orange", "bounce"),
        ("yellow", "stop"),
        ("yellow", "hit"),
        ("green", "right"),
        ("green", "swap"),
        ("blue", "down"),
        ("blue", "appear"),
        ("purple", "turn"),
        ("purple", "pushed"),
        ("pink", "shrink"),
        ("pink", "start"),
        ("black", "appear"),
        ("black", "swap"),
    }
)


def is_held_out(pair: Pair, motion: str) -> bool:
    """Whether training never shows this colour with this shape, or with this motion."""
    return pair in HELD_OUT or (pair[0], motion) in HELD_OUT_MOTIONS


@dataclass(frozen=True)
class Key:
    """Where an object is at a moment, in the unit square with y downwards, and how large (times `RADIUS`)."""

    time: float
    x: float
    y: float
    scale: float = 1.0


@dataclass(frozen=True)
class Way:
    """What an object does. Between the keys of its track it moves evenly, before and after them it rests."""

    motion: str
    track: tuple[Key, ...]
    shown: tuple[float, float] = (0.0, 1.0)

    def at(self, time: float) -> Key | None:
        """Where the object is, or None while it is not shown."""
        if not self.shown[0] <= time <= self.shown[1]:
            return None
        before = after = self.track[0]
        for after in self.track:
            if time <= after.time:
                break
            before = after
        if not before.time < time < after.time:  # at rest, before the first key or after the last one
            return Key(time, after.x, after.y, after.scale)
        share = (time - before.time) / (after.time - before.time)
        pairs = ((before.x, after.x), (before.y, after.y), (before.scale, after.scale))
        return Key(time, *(a + share * (b - a) for a, b in pairs))

    def backwards(self) -> "Way":
        """What is seen of it when the clip is played backwards."""
        track = tuple(replace(key, time=1 - key.time) for key in reversed(self.track))
        return Way(_BACKWARDS.get(self.motion, self.motion), track, (1 - self.shown[1], 1 - self.shown[0]))


@dataclass(frozen=True)
class MovingObject:
    """One shape and its way."""

    shape: str
    colour: str
    way: Way
    tilt: float = 0.0  # degrees
    shade: float = 1.0  # multiplies the colour

    @property
    def motion(self) -> str:
        return self.way.motion

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class ClipScene:
    """Objects with different names; the first is the one that the clip was drawn for."""

    objects: tuple[MovingObject, ...]
    background: tuple[int, int, int] = (232, 232, 232)

    @property
    def held_out(self) -> bool:
        return any(is_held_out(thing.pair, thing.motion) for thing in self.objects)


def reverse(scene: ClipScene) -> ClipScene:
    """The scene that is seen when the clip is played backwards."""
    return replace(scene, objects=tuple(replace(thing, way=thing.way.backwards()) for thing in scene.objects))


def render_clip(scene: ClipScene, *, frames: int, size: int) -> list[Image.Image]:
    """Draw `frames` RGB pictures of `size` x `size` pixels, at the centres of equal intervals of the time."""
    return [render_frame(scene, (number + 0.5) / frames, size=size) for number in range(frames)]


def render_frame(scene: ClipScene, time: float, *, size: int, supersample: int = 3) -> Image.Image:
    """Draw the scene at a time from 0 to 1, first `supersample` times as large for smooth edges."""
    side = size * supersample
    image = Image.new("RGB", (side, side), scene.background)
    draw = ImageDraw.Draw(image)
    for thing in scene.objects:
        place = thing.way.at(time)
        if place is not None:
            draw_shape(
                draw,
                thing.shape,
                COLOURS[thing.colour],
                x=place.x * side,
                y=place.y * side,
                radius=RADIUS * place.scale * side,
                tilt=thing.tilt,
                shade=thing.shade,
            )
    return image.reduce(supersample)
