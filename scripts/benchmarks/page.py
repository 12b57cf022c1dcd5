"""What was measured, shown: a table in the terminal, JSON for each suite, PNG plots, and one HTML page."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.table import Table

from multimodal.chart import Chart, Curve
from multimodal.report import Headline, Report, RunFacts, write_json, write_report
from multimodal.report import Table as PageTable
from multimodal.train.logging import peak_memory_mb
from scripts.benchmarks.case import Settings
from scripts.benchmarks.run import Row, SuiteResult, Verdict, points

SWEEPS = ("tiles", "frames", "text tokens", "batch", "decoder layers", "share of text alone")
HEADER = ("row", "ours", "theirs", "ratio", "samples/s", "tokens/s", "MB above the weights", "peer", "TFLOP/s", "note")
SHOWN = 7
"""Columns that fit a terminal; the page has all."""


def show(results: Sequence[SuiteResult], console: Console) -> None:
    """The tables of rows and of goals."""
    for result in results:
        table = Table(*HEADER[:SHOWN], title=result.suite)
        for row in result.rows:
            table.add_row(*_cells(row)[:SHOWN])
        for finding in result.missing:
            table.add_row(finding.name, finding.note)
        console.print(table)
    goals = Table("what", "found", "goal", "", title="goals")
    for verdict in _verdicts(results):
        mark = {True: "[green]reached", False: "[red]missed", None: ""}[verdict.reached]
        goals.add_row(verdict.what, f"{verdict.value:.3g}", _goal(verdict), mark)
    console.print(goals)


def write(results: Sequence[SuiteResult], settings: Settings, folder: Path, *, began: float) -> Path:
    """`<suite>.json`, `plots/*.png` and `report.html` in a folder; the page's path."""
    machine = {"device": _device(settings), "threads": torch.get_num_threads(), "torch": torch.__version__}
    about = {
        "size": settings.size.name,
        "precision": settings.precision,
        "machine": machine,
        "compiled": settings.compile,
    }
    for result in results:
        write_json(folder / f"{result.suite}.json", about | {"shapes": asdict(settings.size)} | result.to_dict())
    charts = _charts([row for result in results for row in result.rows])
    for chart in charts:
        _plot(chart, folder / "plots")
    page = folder / "report.html"
    compiled = {"nobody": "", "ours": " Our layers are compiled.", "both": " Layers are compiled on both sides."}
    run = RunFacts(
        title="Measured side by side",
        subtitle=f"Size {settings.size.name}, {settings.precision}, on {_device(settings)}: the same shapes and "
        f"weights on both sides, timed in turn, after their outputs were found to agree.{compiled[settings.compile]}",
        seed=settings.seed,
        seconds=time.perf_counter() - began,
        peak_memory_mb=peak_memory_mb(settings.torch_device),
        device=_device(settings),
    )
    write_report(
        page,
        Report(
            title=run.title,
            subtitle=run.subtitle,
            headlines=tuple(_headline(verdict) for verdict in _verdicts(results) if verdict.goal is not None),
            tables=tuple(_page_table(result) for result in results),
            charts=tuple(charts),
            charts_title="How time and memory grow",
            facts=run.lines(),
        ),
    )
    return page


def _device(settings: Settings) -> str:
    return torch.cuda.get_device_name() if settings.on_gpu else "cpu"


def _verdicts(results: Sequence[SuiteResult]) -> list[Verdict]:
    return [verdict for result in results for verdict in result.verdicts]


def _goal(verdict: Verdict) -> str:
    return "" if verdict.goal is None else f"{'>=' if verdict.at_least else '<='} {verdict.goal:g}"


def _headline(verdict: Verdict) -> Headline:
    return Headline(f"{verdict.value:.3g}", verdict.what, f"goal {_goal(verdict)}", verdict.reached)


def _cells(row: Row) -> list[str]:
    case, times = row.case, row.times
    if times is None or row.ours is None or row.theirs is None:
        found = row.agreement
        disagreement = f"disagree in {found.of}: {found.difference:.2g}" if found else ""
        return [case.name, disagreement, *[""] * 5, case.peer, "", case.note]
    ratios = times.ratios(measure=case.measure)
    sides = (row.ours, row.theirs)
    memory = "" if row.our_memory is None else f"{row.our_memory:,.0f} / {row.their_memory:,.0f}"
    return [
        case.name,
        *(f"{side.seconds * 1e3:,.1f} ms ±{side.spread / 2:.0%}" for side in sides),
        f"{row.ratio:.2f} x ({min(ratios):.2f} to {max(ratios):.2f}) {case.measure}",
        " / ".join(f"{side.samples_per_second:,.3g}" for side in sides),
        " / ".join(f"{side.tokens_per_second:,.0f}" for side in sides),
        memory if row.memory_ratio is None else f"{memory} ({row.memory_ratio:.2f} x)",
        case.peer,
        f"{row.ours.teraflops:.3g}" if row.ours.teraflops else "",
        case.note if row.agreement is None else f"agree to {row.agreement.difference:.0e}. {case.note}",
    ]


def _page_table(result: SuiteResult) -> PageTable:
    rows = [tuple(_cells(row)) for row in result.rows]
    rows += [(finding.name, *[""] * (len(HEADER) - 2), finding.note) for finding in result.missing]
    return PageTable(result.suite, HEADER, tuple(rows))


def _charts(rows: Sequence[Row]) -> list[Chart]:
    charts = []
    for what in SWEEPS:
        found = points(rows, what)
        if len(found) < 2:
            continue
        peer = found[0][1].case.peer
        seconds = [
            _curve("ours", [(x, row.ours.seconds * 1e3 if row.ours else None) for x, row in found]),
            _curve(peer, [(x, row.theirs.seconds * 1e3 if row.theirs else None) for x, row in found]),
        ]
        memory = [
            _curve("ours", [(x, row.our_memory) for x, row in found]),
            _curve(peer, [(x, row.their_memory) for x, row in found]),
        ]
        charts.append(Chart(f"Time of a step against {what}", tuple(seconds), what, "milliseconds"))
        if all(curve.points for curve in memory):
            charts.append(Chart(f"Memory above the weights against {what}", tuple(memory), what, "MB"))
    return charts


def _curve(name: str, points: Sequence[tuple[float, float | None]]) -> Curve:
    return Curve(name, tuple((x, y) for x, y in points if y is not None), smooth=False)


def _plot(chart: Chart, folder: Path) -> None:
    """The chart as a PNG file."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for curve in chart.curves:
        axes.plot(*zip(*curve.points, strict=True), marker="o", label=curve.name)
    axes.set(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / f"{chart.title.lower().replace(' ', '_')}.png", dpi=120)
    pyplot.close(figure)
