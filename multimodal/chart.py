"""Line charts as inline SVG for the one-file report: raw values pale, their moving average on top.

Drawn by hand because a chart that carries no colours of its own follows the page's light and dark scheme.
"""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 600, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 74, 14, 46
_MAX_POINTS = 600
_COLOURS = 4  # .series-0 ... .series-3 in the page's style


@dataclass(frozen=True)
class Curve:
    """One line. `points` are (x, y) in order of x; points that are not finite are left out."""

    name: str
    points: tuple[Point, ...]
    smooth: bool = True


@dataclass(frozen=True)
class Chart:
    """A line chart of up to four curves with labelled axes."""

    title: str
    curves: tuple[Curve, ...]
    x_label: str = "step"
    y_label: str = "loss"

    def svg(self) -> Markup:
        """The chart as an `<svg>` element; its colours come from the classes of the page."""
        return _draw(self)


def curve_from_log(path: str | Path, key: str = "loss", *, name: str = "") -> Curve:
    """The values of `key` over the steps of a run's `log.jsonl`; lines without that key are passed over."""
    with Path(path).open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines if line.strip()]
    points = tuple((float(record["step"]), float(record[key])) for record in records if record.get(key) is not None)
    return Curve(name or key, points)


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of about `window` values around each one, centred so that it does not trail a fall.

    At the start the window shrinks on both sides, at the end only ahead: the last average is one of many values.
    """
    half = max(0, window // 2)
    sums = [0.0, *itertools.accumulate(values)]
    averages = []
    for index in range(len(values)):
        behind = min(half, index)
        ahead = min(behind, len(values) - 1 - index)
        averages.append((sums[index + ahead + 1] - sums[index - behind]) / (ahead + 1 + behind))
    return averages


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that lie in [low, high], about `about` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _label(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.10g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}"


def _thin(points: Sequence[Point]) -> list[Point]:
    """Every k-th point, the last always among them."""
    stride = max(1, math.ceil(len(points) / _MAX_POINTS))
    return list(points[::-1][::stride])[::-1]


def _draw(chart: Chart) -> Markup:
    curves = [
        (curve, [(x, y) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)]) for curve in chart.curves
    ]
    curves = [(curve, points) for curve, points in curves if points]
    if not curves:
        return Markup('<p class="quiet">No values were logged.</p>')
    xs = [x for _, points in curves for x, _ in points]
    ys = [y for _, points in curves for _, y in points]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = min(ys), max(ys)
    if 0 < y_low < 0.4 * y_high:
        y_low = 0.0  # a zero line costs little height here, and makes heights comparable
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0

    def place(point: Point) -> Point:
        across = _LEFT + (point[0] - x_low) / x_span * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - (point[1] - y_low) / y_span * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_axes(chart, ticks(x_low, x_high, 5), ticks(y_low, y_high, 5), place)]
    end_labels = []
    for index, (curve, points) in enumerate(curves):
        colour = f"series-{index % _COLOURS}"
        line = points
        if curve.smooth and len(points) > 8:
            parts.append(_polyline(_thin(points), f"raw {colour}", place))
            averages = moving_average([y for _, y in points], max(4, len(points) // 25))
            line = [(x, average) for (x, _), average in zip(points, averages, strict=True)]
        parts.append(_polyline(_thin(line), f"line {colour}", place))
        end_labels.append((place(line[-1]), f"{line[-1][1]:.3g}", colour))
    parts += _end_labels(end_labels)
    title = Markup("<title>{}</title>").format(chart.title)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img">{}{}</svg>').format(
        _WIDTH, _HEIGHT, title, Markup("").join(parts)
    )


def _axes(chart: Chart, x_ticks: list[float], y_ticks: list[float], place: Callable[[Point], Point]) -> Markup:
    floor = _HEIGHT - _BOTTOM
    parts = []
    for value in y_ticks:
        y = place((0.0, value))[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_label(value)}</text>')
    for value in x_ticks:
        x = place((value, 0.0))[0]
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{_label(value)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + floor) / 2
    parts.append(
        f'<text class="name" x="{middle_x}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    parts.append(
        f'<text class="name" transform="translate(14 {middle_y}) rotate(-90)" text-anchor="middle">'
        f"{escape(chart.y_label)}</text>"
    )
    return Markup("".join(parts))


def _polyline(points: Sequence[Point], css: str, place: Callable[[Point], Point]) -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points))
    return Markup('<polyline class="{}" points="{}"/>').format(css, path)


def _end_labels(labels: list[tuple[Point, str, str]]) -> list[Markup]:
    """The last value of each curve beside its end, pushed apart where two would overlap."""
    drawn, lowest = [], -math.inf
    for (x, y), text, colour in sorted(labels, key=lambda label: label[0][1]):
        text_y = lowest = max(y, lowest + 15)
        drawn.append(Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(colour, x, y))
        drawn.append(Markup('<text class="end" x="{:.1f}" y="{:.1f}">{}</text>').format(x + 9, text_y + 4, text))
    return drawn
