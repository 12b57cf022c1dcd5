"""Rendered scenes: an endless image data set with known truth, needing no download.

A scene is one to four coloured shapes on a 3 x 3 grid of cells, on some with a word or digit. Everything that can be
seen, jitter included, is in the frozen `Scene`, so `render` is a pure function of it, at any resolution and aspect.
Some (colour, shape) pairs never occur in the training split: a model that names them on the held-out split composes.
What is said about a scene lives in `vision.scene_language`.
"""

import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart")
COLOURS = {
    "red": (222, 30, 36),
    "orange": (250, 132, 8),
    "yellow": (246, 214, 16),
    "green": (28, 150, 52),
    "blue": (30, 80, 220),
    "purple": (130, 40, 170),
    "pink": (250, 130, 190),
    "black": (24, 24, 24),
}
SIZES = ("small", "large")
WORDS = ("sun", "cat", "dog", "car", "hat", "bus", "cup", "map", "key", "fox", "tea", "box")
DIGITS = tuple("0123456789")
POSITIONS = (("top left", "top", "top right"), ("left", "centre", "right"), ("bottom left", "bottom", "bottom right"))
ASPECTS = (1.0, 1.0, 1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16, 2.0, 0.5)

Pair = tuple[str, str]
Outline = tuple[tuple[float, float], ...]
Split = Literal["train", "held_out", "any"]

# One or two of each colour and of each shape: 10 of 56 pairs, and every colour and shape stays in training.
HELD_OUT: frozenset[Pair] = frozenset(
    {
        ("red", "star"),
        ("orange", "ring"),
        ("yellow", "square"),
        ("yellow", "heart"),
        ("green", "circle"),
        ("blue", "triangle"),
        ("blue", "cross"),
        ("purple", "heart"),
        ("pink", "circle"),
        ("black", "square"),
    }
)
ALL_PAIRS: tuple[Pair, ...] = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
TRAIN_PAIRS: tuple[Pair, ...] = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT)

_DISTANCE = 80.0  # in RGB: how far a colour without a name is from all that have one, and from the background
_DIAMETER = {"small": 0.54, "large": 0.98}  # of the shorter side of a cell
_TEXT_COLOUR = (50, 50, 60)


@dataclass(frozen=True)
class SceneObject:
    """One shape. `row` and `column` (0 to 2) give its cell; `offset` (x, y) from -1 to 1 its place in the free room.

    `colour` is one of `COLOURS`, or "" for one that has no name, which `rgb` then holds; `shape` one of `SHAPES`, or ""
    for one that has no name, whose corners `outline` then holds (in radii, y downwards).
    """

    shape: str
    colour: str
    size: str
    row: int
    column: int
    offset: tuple[float, float] = (0.0, 0.0)
    tilt: float = 0.0  # degrees
    shade: float = 1.0  # multiplies the colour
    rgb: tuple[int, int, int] | None = None
    outline: Outline | None = None

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape

    @property
    def position(self) -> str:
        return POSITIONS[self.row][self.column]


@dataclass(frozen=True)
class Scene:
    """Objects in distinct cells. `text` is a word, a digit or None, and fills the top or the bottom row of the grid."""

    objects: tuple[SceneObject, ...]
    text: str | None = None
    text_place: Literal["above", "below"] = "below"
    background: tuple[int, int, int] = (232, 232, 232)
    aspect: float = 1.0  # width / height

    @property
    def pairs(self) -> frozenset[Pair]:
        return frozenset(thing.pair for thing in self.objects)

    @property
    def held_out(self) -> bool:
        return bool(self.pairs & HELD_OUT)

    def dimensions(self, short_side: int) -> tuple[int, int]:
        """(width, height) in pixels of this scene at its own aspect ratio."""
        long_side = round(short_side * max(self.aspect, 1 / self.aspect))
        return (long_side, short_side) if self.aspect >= 1 else (short_side, long_side)


def sample_scene(rng: random.Random, *, split: Split) -> Scene:
    """Draw a scene: `train` holds no pair of `HELD_OUT`, `held_out` at least one, `any` draws from all pairs."""
    pool = TRAIN_PAIRS if split == "train" else ALL_PAIRS
    count = rng.choices((1, 2, 3, 4), weights=(2, 3, 3, 2))[0]
    first = rng.choice(sorted(HELD_OUT) if split == "held_out" else pool)
    copies = rng.randint(2, count) if count > 1 and rng.random() < 0.35 else 1
    looks = [(first, rng.choice(SIZES))] * copies
    looks += [(_companion(rng, pool, first), rng.choice(SIZES)) for _ in range(count - copies)]

    text = rng.choice(WORDS if rng.random() < 0.5 else DIGITS) if rng.random() < 0.3 else None
    place: Literal["above", "below"] = rng.choice(("above", "below"))
    rows = [0, 1, 2] if text is None else [0, 1] if place == "below" else [1, 2]
    cells = rng.sample([(row, column) for row in rows for column in range(3)], count)
    shade = rng.randint(222, 248)
    return Scene(
        objects=tuple(_place(rng, pair, size, cell) for (pair, size), cell in zip(looks, cells, strict=True)),
        text=text,
        text_place=place,
        background=(shade + rng.randint(-7, 7), shade + rng.randint(-7, 7), shade + rng.randint(-7, 7)),
        aspect=rng.choice(ASPECTS),
    )


def _companion(rng: random.Random, pool: tuple[Pair, ...], first: Pair) -> Pair:
    """Draw a pair to stand beside `first`, often alike in one attribute, so that the other one matters."""
    alike = rng.random()
    if alike < 0.2:
        pool = tuple(pair for pair in pool if pair[0] == first[0])
    elif alike < 0.4:
        pool = tuple(pair for pair in pool if pair[1] == first[1])
    return rng.choice(pool)


def _place(rng: random.Random, pair: Pair, size: str, cell: tuple[int, int]) -> SceneObject:
    return SceneObject(
        shape=pair[1],
        colour=pair[0],
        size=size,
        row=cell[0],
        column=cell[1],
        offset=(rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8)),
        tilt=rng.uniform(-8, 8),
        shade=rng.uniform(0.92, 1.04),
    )


@dataclass(frozen=True)
class SceneMix:
    """Which of the scenes are made easier to learn from."""

    singles: float = 0.0
    """Scenes that show one object alone, of which shapes are learnt soonest."""
    unnamed: float = 0.0
    """Scenes whose objects each have a colour or a shape without a name, so that each is learnt apart."""
    unnamed_first: int = 0
    """So many of the first scenes are all of that kind. What is learnt first stands in for what is not yet: a learner
    that sees both at once finds which shapes a colour never has, and denies them ever after."""


AS_DRAWN = SceneMix()


def nth_scene(index: int, *, seed: int, split: Split, mix: SceneMix = AS_DRAWN) -> tuple[Scene, random.Random]:
    """Scene `index` of the data set, and the generator to draw its wording from: a function of the arguments alone."""
    rng = random.Random(f"scene {seed} {split} {index}")  # seeding by a string does not depend on the process
    scene = sample_scene(rng, split=split)
    if mix.singles and rng.random() < mix.singles:
        scene = replace(scene, objects=scene.objects[:1], text=None)
    if index < mix.unnamed_first or (mix.unnamed and rng.random() < mix.unnamed):
        scene = _without_names(scene, rng)
    return scene, rng


def scene_sample(
    index: int, *, seed: int, split: Split, size: int | tuple[int, int], mix: SceneMix = AS_DRAWN
) -> tuple[Image.Image, Scene, random.Random]:
    """`nth_scene` with its picture.

    `size` is the short side in pixels at the scene's own aspect ratio, or an exact (width, height); the scene is the
    same at any size.
    """
    scene, rng = nth_scene(index, seed=seed, split=split, mix=mix)
    width, height = scene.dimensions(size) if isinstance(size, int) else size
    return render(scene, width=width, height=height), scene, rng


def _without_names(scene: Scene, rng: random.Random) -> Scene:
    """The scene with the colour or, less often, since colours are learnt soon, the shape of every object swapped for
    one without a name. Objects that look alike lose the same.
    """
    loses_colour = {pair: rng.random() < 0.65 for pair in sorted(scene.pairs)}
    things = [
        replace(thing, colour="", rgb=_unnamed_colour(rng, scene.background))
        if loses_colour[thing.pair]
        else replace(thing, shape="", outline=_unnamed_shape(rng))
        for thing in scene.objects
    ]
    return replace(scene, objects=tuple(things))


def _unnamed_colour(rng: random.Random, background: tuple[int, int, int]) -> tuple[int, int, int]:
    while True:
        rgb = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        if all(math.dist(rgb, other) > _DISTANCE for other in (*COLOURS.values(), background)):
            return rgb


def _unnamed_shape(rng: random.Random) -> Outline:
    corners = rng.randint(5, 8)
    return tuple(
        _ray(360 * (corner + rng.uniform(-0.3, 0.3)) / corners, rng.uniform(0.4, 1.0)) for corner in range(corners)
    )


def render(scene: Scene, *, width: int, height: int, supersample: int = 3) -> Image.Image:
    """Draw the scene as an RGB image of (width, height) pixels, first `supersample` times as large for smooth edges."""
    wide, high = width * supersample, height * supersample
    image = Image.new("RGB", (wide, high), scene.background)
    draw = ImageDraw.Draw(image)
    for thing in scene.objects:
        _draw_object(draw, thing, wide, high)
    if scene.text is not None:
        _draw_text(draw, scene.text, wide, high / 3, top=0.0 if scene.text_place == "above" else high * 2 / 3)
    return image.reduce(supersample) if supersample > 1 else image


def extent(thing: SceneObject, *, width: int, height: int) -> tuple[float, float, float]:
    """(x, y, radius) in pixels of an object in a picture of that size."""
    cell_width, cell_height = width / 3, height / 3
    radius = min(cell_width, cell_height) * _DIAMETER[thing.size] / 2
    x = (thing.column + 0.5) * cell_width + thing.offset[0] * (cell_width / 2 - radius)
    y = (thing.row + 0.5) * cell_height + thing.offset[1] * (cell_height / 2 - radius)
    return x, y, radius


def _draw_object(draw: ImageDraw.ImageDraw, thing: SceneObject, width: int, height: int) -> None:
    x, y, radius = extent(thing, width=width, height=height)
    rgb = thing.rgb or COLOURS[thing.colour]
    draw_shape(draw, thing.outline or thing.shape, rgb, x=x, y=y, radius=radius, tilt=thing.tilt, shade=thing.shade)


def draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str | Outline,
    rgb: tuple[int, int, int],
    *,
    x: float,
    y: float,
    radius: float,
    tilt: float = 0.0,
    shade: float = 1.0,
) -> None:
    """Draw one of `SHAPES`, or an outline, around (x, y), in pixels, in the colour times `shade`, tilted by degrees."""
    red, green, blue = (min(255, round(value * shade)) for value in rgb)
    fill = (red, green, blue)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=max(1, round(radius * 0.42)))
    else:
        turn = math.radians(tilt)
        cos, sin = math.cos(turn) * radius, math.sin(turn) * radius
        outline = _OUTLINES[shape] if isinstance(shape, str) else shape
        draw.polygon([(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in outline], fill=fill)


def _draw_text(draw: ImageDraw.ImageDraw, text: str, wide: float, row_height: float, *, top: float) -> None:
    # Measured once at 100 pixels, then scaled to fill the row.
    left, upper, right, lower = _font(100).getbbox(text)
    size = max(4, int(100 * min(0.9 * wide / (right - left), 0.84 * row_height / (lower - upper))))
    left, upper, right, lower = _font(size).getbbox(text)
    corner = (wide / 2 - (left + right) / 2, top + row_height / 2 - (upper + lower) / 2)
    draw.text(corner, text, fill=_TEXT_COLOUR, font=_font(size))


@lru_cache(maxsize=256)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _ray(angle: float, length: float) -> tuple[float, float]:
    return length * math.sin(math.radians(angle)), -length * math.cos(math.radians(angle))


def _heart_point(t: float) -> tuple[float, float]:
    x = 16 * math.sin(t) ** 3
    y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return x / 17, -(y + 2.5) / 15.5


# Unit outlines, y downwards, that stay within their cell when tilted a little.
_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -0.95), (0.93, 0.8), (-0.93, 0.8)],
    "star": [_ray(36 * corner, 1.0 if corner % 2 == 0 else 0.42) for corner in range(10)],
    "cross": [
        (x * 0.95, y * 0.95)
        for x, y in (
            *((-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32)),
            *((0.32, 1), (-0.32, 1), (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)),
        )
    ],
    "heart": [_heart_point(2 * math.pi * step / 40) for step in range(40)],
}
