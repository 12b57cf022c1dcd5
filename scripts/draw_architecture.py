"""Draw the architecture for the README: how a picture reaches a frozen decoder.

    python -m scripts.draw_architecture --out docs/architecture.svg

The ground is transparent: text stands on a light box of its own, or has a grey that reads on white and on black.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from multimodal.config import parse
from multimodal.errors import run_cli

WIDTH, HEIGHT = 900, 470  # in pixels, the coordinates of everything below
LOOSE = "#768390"
TRAINED, FROZEN, DATA = ("#dbe8fc", "#2f6fd0"), ("#e8eaee", "#8a93a1"), ("#fdf0d3", "#c99a2e")
INK = "#1b2330"
MIDDLE = 222  # height of the stream from picture to projector


@dataclass(frozen=True)
class Config:
    """Where the drawing goes."""

    out: Path = Path("docs/architecture.svg")
    """File to write; its ending (.svg, .png, .pdf) decides the format."""


def box(axes: Axes, left: float, bottom: float, width: float, height: float, style: tuple[str, str]) -> None:
    """A rounded box in one of the three styles."""
    fill, edge = style
    shape = "round,pad=0,rounding_size=7"
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=shape, fc=fill, ec=edge, lw=1.3))


def text(axes: Axes, x: float, y: float, words: str, *, size: float = 9, color: str = INK, **style) -> None:
    """Text centred on (x, y)."""
    axes.text(x, y, words, fontsize=size, color=color, ha=style.pop("ha", "center"), va="center", **style)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], *, color: str = LOOSE) -> None:
    """A straight arrow."""
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, lw=1.6, color=color, shrinkA=0, shrinkB=0)
    )


def draw_scene(axes: Axes, frame: Rectangle, x: float, y: float) -> None:
    """The part of the example scene that shows through `frame`; (x, y) is the scene's lower left corner."""
    axes.add_patch(frame)
    for thing in (
        Circle((x + 52, y + 58), 18, fc="#d9482b"),
        Polygon([(x + 28, y + 8), (x + 76, y + 8), (x + 52, y + 36)], fc="#2f6fd0"),
        Rectangle((x + 10, y + 50), 16, 16, fc="#3a9a5b"),
    ):
        axes.add_patch(thing)
        thing.set_clip_path(frame)


def draw_picture(axes: Axes) -> None:
    """The input picture, and the same picture cut into tiles."""
    paper, side, gap = {"fc": DATA[0], "ec": DATA[1], "lw": 1.3}, 42, 10
    draw_scene(axes, Rectangle((16, MIDDLE - side), 2 * side, 2 * side, **paper), 16, MIDDLE - side)
    for row in range(2):
        for column in range(2):
            x, y = 142 + column * gap, MIDDLE - side - gap / 2 + row * gap
            draw_scene(axes, Rectangle((x + column * side, y + row * side), side, side, **paper), x, y)
    text(axes, 58, MIDDLE - 64, "picture", color=LOOSE)
    text(axes, 189, MIDDLE - 64, "1 to 4 tiles", color=LOOSE)
    arrow(axes, (106, MIDDLE), (137, MIDDLE))
    arrow(axes, (241, MIDDLE), (267, MIDDLE))


def draw_encoder(axes: Axes) -> None:
    """Image encoder with its taps, and the projector."""
    left, bottom = 268, MIDDLE - 97
    box(axes, left, bottom, 164, 178, TRAINED)
    text(axes, left + 82, bottom + 159, "image encoder", size=10, weight="bold")
    inner, rail = ("#f7faff", TRAINED[1]), left + 142
    for index in range(4):
        box(axes, left + 14, bottom + 14 + index * 23, 102, 18, inner)
        text(axes, left + 65, bottom + 22.5 + index * 23, "ViT layer", size=8.5)
    box(axes, left + 14, bottom + 112, 102, 26, inner)
    text(axes, left + 65, bottom + 124.5, "gated global", size=8.5)
    line = {"color": TRAINED[1], "lw": 1.5, "solid_capstyle": "round"}
    axes.plot([rail, rail], [bottom + 23, bottom + 125], **line)
    for y in (23, 46, 69, 125):
        axes.plot([left + 116, rail], [bottom + y, bottom + y], **line)
    axes.plot([rail, left + 164], [MIDDLE, MIDDLE], **line)
    text(axes, left + 82, bottom - 15, "features of several depths", color=LOOSE)
    arrow(axes, (left + 164, MIDDLE), (471, MIDDLE), color=TRAINED[1])
    box(axes, 472, MIDDLE - 34, 88, 68, TRAINED)
    text(axes, 516, MIDDLE + 12, "projector", size=10, weight="bold")
    text(axes, 516, MIDDLE - 12, "to the width of\nthe decoder", size=7.6)


def draw_decoder(axes: Axes) -> None:
    """The decoder's layers with the adapter's between them, the prompt below and the caption above."""
    left, width, bus = 640, 240, 598
    box(axes, left - 14, 64, width + 28, 340, ("none", FROZEN[1]))
    text(axes, left + 2, 388, "frozen decoder", size=9, color=LOOSE, weight="bold", ha="left")
    rows = (("token embeddings", 22), ("decoder layers", 34), ("gated cross-attention", 34))
    rows += (("decoder layers", 34), ("gated cross-attention", 34), ("decoder layers", 34), ("output head", 22))
    bottom, previous = 76.0, 0.0
    for label, height in rows:
        trained = label.startswith("gated")
        box(axes, left, bottom, width, height, TRAINED if trained else FROZEN)
        text(axes, left + width / 2, bottom + height / 2, label, weight="bold" if trained else "normal")
        if trained:
            middle = bottom + height / 2
            axes.plot([bus, bus], [MIDDLE, middle], color=TRAINED[1], lw=1.6, solid_capstyle="round")
            arrow(axes, (bus, middle), (left - 1, middle), color=TRAINED[1])
        if previous:
            arrow(axes, (left + width / 2, previous), (left + width / 2, bottom))
        previous, bottom = bottom + height, bottom + height + 14
    axes.plot([560, bus], [MIDDLE, MIDDLE], color=TRAINED[1], lw=1.6)
    text(axes, 586, MIDDLE - 76, "keys and\nvalues, once\na prompt", color=LOOSE, size=8)
    arrow(axes, (left + width / 2, 46), (left + width / 2, 76))
    box(axes, left, 18, width, 28, DATA)
    text(axes, left + width / 2, 32, "<image> Describe the image.", size=8.5, family="monospace")
    arrow(axes, (left + width / 2, previous), (left + width / 2, 428))
    box(axes, left, 428, width, 28, DATA)
    text(axes, left + width / 2, 442, "a red circle above a blue triangle", size=7.8, family="monospace")


def draw_legend(axes: Axes) -> None:
    """What the colours mean."""
    for y, style, label in (
        (438, TRAINED, "trained: the adapter (and, if wished, the encoder)"),
        (412, FROZEN, "frozen: every weight of the text model, same hash before and after"),
        (386, DATA, "data"),
    ):
        box(axes, 16, y - 8, 26, 16, style)
        text(axes, 52, y, label, color=LOOSE, ha="left")


def draw() -> Figure:
    """The whole figure."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    for part in (draw_picture, draw_encoder, draw_decoder, draw_legend):
        part(axes)
    return figure


def main() -> None:
    config = parse(Config)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    # Fixed ids and no date: drawing again gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "graft", "svg.fonttype": "path"}):
        metadata = {"Date": None} if config.out.suffix == ".svg" else None
        draw().savefig(config.out, transparent=True, metadata=metadata)
    print(config.out)


if __name__ == "__main__":
    run_cli(main)
