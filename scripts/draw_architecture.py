"""Draw the architecture for the README: how pictures, clips and speech reach one frozen decoder.

    python -m scripts.draw_architecture --out docs/architecture.svg

The ground is transparent: text stands on a light box of its own, or has a grey that reads on white and on black.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from multimodal.config import parse
from multimodal.errors import UserError, run_cli
from multimodal.files import write_whole

WIDTH, HEIGHT = 1100, 560
STYLE = """
text { font: 14px system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif; fill: #1b2330;
  text-anchor: middle; dominant-baseline: central }
.name { font-weight: 600 }
.small { font-size: 12px }
.loose { fill: #768390; font-size: 13px }
.said { font: 12.5px ui-monospace, Menlo, Consolas, monospace }
.left { text-anchor: start }
rect { rx: 7; stroke-width: 1.4 }
.trained { fill: #dbe8fc; stroke: #2f6fd0 }
.part { fill: #f7faff; stroke: #2f6fd0 }
.frozen { fill: #e8eaee; stroke: #8a93a1 }
.data { fill: #fdf0d3; stroke: #c99a2e }
.frame { fill: none; stroke: #8a93a1 }
.sharp { rx: 0 }
path { fill: none; stroke-width: 1.8; stroke-linejoin: round }
.flow { stroke: #768390; marker-end: url(#grey) }
.media { stroke: #2f6fd0; marker-end: url(#blue) }
.wave { stroke: #c99a2e }
.red { fill: #d9482b; stroke: none }
.blue { fill: #2f6fd0; stroke: none }
.green { fill: #3a9a5b; stroke: none }
"""
MARKER = (
    '<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" orient="auto">'
    '<polygon points="0,0 10,5 0,10" fill="{colour}"/></marker>'
)
ENCODERS, ADAPTERS, DECODER = 300, 530, 800  # left edges of the three columns
PICTURE, CLIP, SOUND = 118, 278, 419  # heights of the three streams
LAYERS = (  # of the decoder from the top: name, class, upper edge, height
    ("output head", "frozen", 84, 26),
    ("decoder layers", "frozen", 124, 32),
    ("gated image cross-attention", "trained", 170, 34),
    ("gated video cross-attention", "trained", 218, 34),
    ("decoder layers", "frozen", 266, 32),
    ("gated image cross-attention", "trained", 312, 34),
    ("decoder layers", "frozen", 360, 32),
    ("token embeddings", "frozen", 406, 26),
)


@dataclass(frozen=True)
class Config:
    """Where the drawing goes."""

    out: Path = Path("docs/architecture.svg")
    """File to write, an .svg."""


def box(left: float, top: float, width: float, height: float, kind: str) -> str:
    """A box in one of the styles; its corners are rounded unless it is `sharp`."""
    return f'<rect class="{kind}" x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}"/>'


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """A line of text centred on (x, y), or beginning there if it is `left`."""
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def line(kind: str, *points: tuple[float, float]) -> str:
    """A line through the points; `flow` and `media` end in an arrow."""
    return f'<path class="{kind}" d="M{" L".join(f"{x:g} {y:g}" for x, y in points)}"/>'


def scene(left: float, top: float, side: float, *, moved: float = 0.5) -> Iterator[str]:
    """A picture of three things, the circle so far on its way from left to right."""
    at, unit = (left + side * (0.2 + 0.6 * moved), top + side * 0.28), side / 84
    yield box(left, top, side, side, "data sharp")
    yield f'<circle class="red" cx="{at[0]:g}" cy="{at[1]:g}" r="{15 * unit:g}"/>'
    corners = [(28, 76), (74, 76), (51, 50)]
    points = " ".join(f"{left + x * unit:g},{top + y * unit:g}" for x, y in corners)
    yield f'<polygon class="blue" points="{points}"/>'
    yield box(left + 8 * unit, top + 52 * unit, 14 * unit, 14 * unit, "green sharp")


def draw_pictures() -> Iterator[str]:
    """A picture, and its tiles."""
    yield from scene(20, PICTURE - 42, 84)
    yield text(62, PICTURE + 60, "picture", "loose")
    yield line("flow", (110, PICTURE), (138, PICTURE))
    for row in range(2):
        for column in range(2):
            view, at = (column * 42, row * 42), (144 + column * 50, PICTURE - 46 + row * 50)
            yield f'<svg x="{at[0]}" y="{at[1]}" width="42" height="42" viewBox="{view[0]} {view[1]} 42 42">'
            yield from scene(0, 0, 84)
            yield "</svg>"
            yield box(*at, 42, 42, "frame sharp")
    yield text(190, PICTURE + 60, "1 to 4 tiles", "loose")
    yield line("flow", (242, PICTURE), (ENCODERS - 3, PICTURE))


def draw_clips() -> Iterator[str]:
    """Sampled frames."""
    for number in range(4):
        yield from scene(20 + 55 * number, CLIP - 25, 50, moved=number / 3)
    yield text(127, CLIP + 42, "clip: frames and their times", "loose")
    yield line("flow", (242, CLIP), (ENCODERS - 3, CLIP))


def draw_sounds() -> Iterator[str]:
    """A waveform."""
    yield box(20, SOUND - 25, 215, 50, "data sharp")
    heights = [22 * abs(math.sin(0.55 * n)) * math.exp(-(((n - 12) % 17 - 8) ** 2) / 40) + 1.5 for n in range(49)]
    yield from (line("wave", (31 + 4 * n, SOUND - h), (31 + 4 * n, SOUND + h)) for n, h in enumerate(heights))
    yield text(127, SOUND + 42, "speech: log-mel features", "loose")
    yield line("flow", (242, SOUND), (ENCODERS - 3, SOUND))


def draw_encoders() -> Iterator[str]:
    """The image encoder, which sees tiles and frames, and the speech encoder."""
    left, top, height = ENCODERS, PICTURE - 68, CLIP - PICTURE + 116
    yield box(left, top, 170, height, "trained")
    yield text(left + 85, top + 20, "image encoder", "name")
    for number, name in enumerate(("gated global layers", *["ViT layer"] * 4)):
        yield box(left + 18, top + 42 + number * 34 + 10 * bool(number), 134, 26, "part")
        yield text(left + 85, top + 55 + number * 34 + 10 * bool(number), name, "small")
    yield text(left + 85, top + height - 40, "features of several depths,", "small")
    yield text(left + 85, top + height - 24, "those of clips kept on disk", "small")
    yield box(left, SOUND - 32, 170, 64, "trained")
    yield text(left + 85, SOUND - 12, "speech encoder", "name")
    yield text(left + 85, SOUND + 10, "conformer, BEST-RQ", "small")
    for height in (PICTURE, CLIP, SOUND):
        yield line("media", (left + 170, height), (ADAPTERS - 3, height))


def draw_adapters() -> Iterator[str]:
    """What stands between the encoders and the decoder, and where it leads."""
    for height, name, does, goes in (
        (PICTURE, "projector", "to the decoder's width", "keys and values, once a prompt"),
        (CLIP, "temporal aggregator", "merges many frames", "keys and values, once a prompt"),
        (SOUND, "speech adapter", "to token embeddings", "in the place of <audio>"),
    ):
        yield box(ADAPTERS, height - 32, 180, 64, "trained")
        yield text(ADAPTERS + 90, height - 11, name, "name")
        yield text(ADAPTERS + 90, height + 11, does, "small")
        yield text(ADAPTERS + 90, height + 48, goes, "loose small")
    image = [top + height / 2 for name, _, top, height in LAYERS if "image" in name]
    video = next(top + height / 2 for name, _, top, height in LAYERS if "video" in name)
    right, entry = ADAPTERS + 180, DECODER - 3
    yield line("media", (right, PICTURE), (right + 56, PICTURE), (right + 56, image[0]), (entry, image[0]))
    yield line("media", (right + 56, image[0]), (right + 56, image[1]), (entry, image[1]))
    yield line("media", (right, CLIP), (right + 28, CLIP), (right + 28, video), (entry, video))
    yield line("media", (right, SOUND), (entry, SOUND))


def draw_decoder() -> Iterator[str]:
    """The decoder's layers with the adapters' between them, the prompt below and the answer above."""
    width = 270
    middle = DECODER + width / 2
    yield box(DECODER - 14, 70, width + 28, 376, "frame")
    yield text(DECODER - 14, 458, "frozen decoder", "loose left")
    yield box(DECODER, 20, width, 30, "data")
    yield text(middle, 35, "a red circle moves right", "said")
    yield box(DECODER, 470, width, 30, "data")
    yield text(middle, 485, "<image> <video> <audio> What ...?", "said")
    below = 470.0
    for name, kind, top, height in reversed(LAYERS):
        yield line("flow", (middle, below), (middle, top + height + 2))
        yield box(DECODER, top, width, height, kind)
        yield text(middle, top + height / 2, name, "name" if kind == "trained" else "")
        below = top
    yield line("flow", (middle, below), (middle, 52))


def draw_legend() -> Iterator[str]:
    """What the colours mean."""
    for left, kind, label in (
        (20, "trained", "trained: adapters (and, if wished, encoders)"),
        (390, "frozen", "frozen: every weight of the text model, same hash before and after"),
        (900, "data", "data"),
    ):
        yield box(left, 524, 28, 18, kind)
        yield text(left + 38, 533, label, "loose left")


def draw() -> str:
    """The whole drawing; the same text each time."""
    markers = (MARKER.format(name=name, colour=colour) for name, colour in (("grey", "#768390"), ("blue", "#2f6fd0")))
    parts = (draw_pictures, draw_clips, draw_sounds, draw_encoders, draw_adapters, draw_decoder, draw_legend)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f"<style>{STYLE}</style>",
        "<defs>",
        *markers,
        "</defs>",
    ]
    lines += [element for part in parts for element in part()]
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    config = parse(Config, description=__doc__)
    if config.out.suffix != ".svg":
        raise UserError(f"--out {config.out}: expected a file that ends in .svg")
    write_whole(config.out, draw())
    print(config.out)


if __name__ == "__main__":
    run_cli(main)
