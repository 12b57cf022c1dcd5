"""Measuring a suite row by row: memory in fresh processes first, then agreement, then times; and what became of the
goals.
"""

import gc
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from scripts.benchmarks.case import Agreement, Case, Finding, Goal, Settings
from scripts.benchmarks.flops import peak_of
from scripts.benchmarks.memory import peak_in_fresh_process
from scripts.benchmarks.suites import SUITES
from scripts.benchmarks.timing import Summary, Times, alternate, summarise

LINEAR = 1.1
"""Most that the exponent of growth may be."""
GROWING = ("tiles", "frames", "text tokens")
"""What time and memory are to grow linearly with (spec A2: tiles of a picture attend to each other, a small share)."""


@dataclass(frozen=True)
class Verdict:
    """A number beside its goal, if it has one. `at_least`: whether more is better."""

    suite: str
    what: str
    value: float
    goal: float | None = None
    at_least: bool = True
    note: str = ""

    @property
    def reached(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


@dataclass(frozen=True)
class Row:
    """All that was measured of a case. Without times its sides disagree. Memory is MB above the weights."""

    case: Case
    agreement: Agreement | None
    times: Times | None = None
    ours: Summary | None = None
    theirs: Summary | None = None
    our_memory: float | None = None
    their_memory: float | None = None

    @property
    def agrees(self) -> bool:
        return self.agreement is None or self.agreement.holds

    @property
    def ratio(self) -> float | None:
        """The median of the pairs' ratios."""
        return None if self.times is None else statistics.median(self.times.ratios(measure=self.case.measure))

    @property
    def memory_ratio(self) -> float | None:
        """Ours / theirs."""
        return self.our_memory / self.their_memory if self.our_memory is not None and self.their_memory else None

    def verdicts(self, settings: Settings) -> list[Verdict]:
        """What its goals name."""
        return [verdict for goal in self.case.goals if (verdict := self._verdict(goal, settings)) is not None]

    def _verdict(self, goal: Goal, settings: Settings) -> Verdict | None:
        case, bound = self.case, goal.bound(settings)
        if goal.of == "memory":
            value, at_least, what = self.memory_ratio, False, "memory above the weights, ours / theirs"
        elif goal.of == "mfu":
            peak = peak_of(torch.cuda.get_device_name()) if settings.on_gpu else None
            value = self.ours.teraflops * 1e12 / peak if peak and self.ours else None
            at_least, what = True, "model FLOPs utilisation"
        else:
            at_least = case.measure == "speed"
            value, what = self.ratio, "times as fast" if at_least else "times as long"
        if value is None:
            return None
        return Verdict(case.suite, f"{case.name}: {what} ({case.peer})", value, bound, at_least, case.note)

    def to_dict(self) -> dict[str, Any]:
        case = self.case
        return {
            "name": case.name,
            "peer": case.peer,
            "measure": case.measure,
            "note": case.note,
            "sweep": case.sweep,
            "agreement": None if self.agreement is None else asdict(self.agreement),
            "seconds": None if self.times is None else {"ours": self.times.ours, "theirs": self.times.theirs},
            "ratios": None if self.times is None else self.times.ratios(measure=case.measure),
            "ratio": self.ratio,
            "ours": None if self.ours is None else asdict(self.ours),
            "theirs": None if self.theirs is None else asdict(self.theirs),
            "memory_mb": {"ours": self.our_memory, "theirs": self.their_memory},
            "memory_ratio": self.memory_ratio,
        }


@dataclass(frozen=True)
class SuiteResult:
    """Rows of a suite, and all verdicts: those of the rows, of growth, and findings. `missing`: what could not be."""

    suite: str
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    missing: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "rows": [row.to_dict() for row in self.rows],
            "verdicts": [{**asdict(verdict), "reached": verdict.reached} for verdict in self.verdicts],
            "missing": [{"name": one.name, "note": one.note} for one in self.missing],
        }


def run_suite(name: str, settings: Settings, *, only: str = "", report: Callable[[str], None] = print) -> SuiteResult:
    """Measure the rows of a suite whose names hold `only`."""
    suite, rows = SUITES[name](settings), []
    for case in suite.cases:
        if only in case.name:
            rows.append(measure(case, settings))
            report(_line(rows[-1]))
            gc.collect()
            if settings.on_gpu:
                torch.cuda.empty_cache()
    verdicts = [verdict for row in rows for verdict in row.verdicts(settings)] + growth(name, rows)
    for finding in suite.findings:
        if finding.measure is not None and only in finding.name:
            value = finding.measure()
            verdicts.append(Verdict(name, finding.name, value, finding.most, at_least=False, note=finding.note))
            report(f"{finding.name}: {value:.3g}")
    missing = tuple(finding for finding in suite.findings if finding.measure is None and only in finding.name)
    return SuiteResult(name, tuple(rows), tuple(verdicts), missing)


def measure(case: Case, settings: Settings) -> Row:
    """Everything about one row. Times are not taken where the sides disagree: they would mean nothing."""
    peaks = (None, None)
    if case.memory and settings.memory:
        peaks = tuple(peak_in_fresh_process(case.suite, case.name, side, settings).above for side in ("ours", "theirs"))
    pair = case.build()
    agreement = None if pair.agree is None else pair.agree()
    if agreement is not None and not agreement.holds:
        return Row(case, agreement)
    times = alternate(pair, settings)
    return Row(
        case,
        agreement,
        times,
        summarise(pair.ours, times.ours),
        summarise(pair.theirs, times.theirs),
        peaks[0],
        peaks[1],
    )


def _line(row: Row) -> str:
    if row.agreement is not None and not row.agrees:
        found = row.agreement
        return f"{row.case.name}: DISAGREES in {found.of}: {found.difference:.2g}, at most {found.tolerance:.2g}"
    ratio = "" if row.memory_ratio is None else f", {row.memory_ratio:.2f} x the memory"
    measured = "as fast as" if row.case.measure == "speed" else "as long as"
    return f"{row.case.name}: {row.ratio:.2f} x {measured} {row.case.peer}{ratio}"


def points(rows: Sequence[Row], what: str) -> list[tuple[float, Row]]:
    """Measured rows in which `what` grows, in order."""
    found = [(row.case.sweep[1], row) for row in rows if row.case.sweep and row.case.sweep[0] == what and row.ours]
    return sorted(found, key=lambda point: point[0])


def growth(suite: str, rows: Sequence[Row]) -> list[Verdict]:
    """The exponents with which our time and memory grow from the first to the last point: 1 is linear."""
    verdicts = []
    for what in GROWING:
        found = points(rows, what)
        if len(found) < 2:
            continue
        (x, first), (x_last, last) = found[0], found[-1]
        values = {"time": (first.ours and first.ours.seconds, last.ours and last.ours.seconds)}
        values["memory"] = (first.our_memory, last.our_memory)
        for quantity, (low, high) in values.items():
            if low and high:
                exponent = math.log(high / low) / math.log(x_last / x)
                verdicts.append(
                    Verdict(suite, f"growth of {quantity} with {what}, exponent", exponent, LINEAR, at_least=False)
                )
    return verdicts
