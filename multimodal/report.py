"""The report of a run: one HTML file that opens offline, and the numbers beside it as JSON.

Everything shown is a small frozen dataclass; the page itself is `templates/report.html.j2`, rendered with autoescape,
so that captions, file names and commands may contain anything. Nothing in the page points outside it: media are data
URIs.
"""

import base64
import io
import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from multimodal.chart import Chart
from multimodal.files import write_whole
from multimodal.metrics import Scores
from multimodal.train.logging import git_revision

_VERSIONS_OF = ("torch", "transformers")


@dataclass(frozen=True)
class Media:
    """A picture or a sound inside the page. Make it with `image_media` or `audio_media`."""

    kind: Literal["image", "audio"]
    uri: str
    label: str = ""

    def __post_init__(self) -> None:
        if not self.uri.startswith(f"data:{self.kind}/"):
            raise ValueError(f"media must be a data URI of its kind ({self.kind}), found {self.uri[:40]!r}")


def image_media(picture: Image.Image, label: str = "", *, max_side: int = 512, lossless: bool = False) -> Media:
    """A picture as a data URI, scaled down to `max_side` pixels: JPEG, or PNG if `lossless` or partly transparent."""
    small = picture.copy()
    small.thumbnail((max_side, max_side))
    lossless = lossless or small.mode in ("RGBA", "LA", "PA")
    buffer = io.BytesIO()
    if lossless:
        small.save(buffer, "PNG", optimize=True)
    else:
        small.convert("RGB").save(buffer, "JPEG", quality=88)
    return Media("image", _data_uri(buffer.getvalue(), "image/png" if lossless else "image/jpeg"), label)


def audio_media(data: bytes, label: str = "", *, mime: str = "audio/wav") -> Media:
    """An encoded sound file (WAV, OGG, MP3 ...) as a data URI."""
    return Media("audio", _data_uri(data, mime), label)


def _data_uri(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


@dataclass(frozen=True)
class Headline:
    """One number on top of the page. `good` colours it: reached (True), missed (False), or no target (None)."""

    value: str
    label: str
    note: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class ScoreRow:
    """A row of the score table: a score with its controls, under a name that people know."""

    scores: Scores
    label: str
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """A question about a sample, what the model said, and what was right."""

    question: str
    predicted: str
    expected: str
    right: bool


@dataclass(frozen=True)
class Word:
    """A piece of the hypothesis beside the reference: right, wrong (another word stands there), extra, or missing."""

    text: str
    kind: Literal["right", "wrong", "extra", "missing"] = "right"


@dataclass(frozen=True)
class Card:
    """One sample: its media, what the model said of it, and what people say of it.

    Attributes:
        media: what the model was shown, in order.
        references: shown below the hypothesis; several captions, or one transcript.
        words: the hypothesis word by word, with its errors coloured; shown in its place.
        insight: pictures of what went on inside (attention per word), folded away until asked for.
    """

    media: tuple[Media, ...]
    hypothesis: str
    references: tuple[str, ...] = ()
    answers: tuple[Answer, ...] = ()
    insight: tuple[Media, ...] = ()
    title: str = ""
    insight_title: str = "Where each word looked"
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class DecoderProof:
    """Evidence that the text model stayed itself: its weights' hash before and after, and how far its logits moved."""

    sha256_before: str
    sha256_after: str
    text_logits_max_abs_diff: float

    @property
    def unchanged(self) -> bool:
        """Same weights and exactly the same logits."""
        return self.sha256_before == self.sha256_after and self.text_logits_max_abs_diff == 0.0

    def metrics(self) -> dict[str, Any]:
        """For `metrics.json`."""
        return {
            "text_logits_max_abs_diff": self.text_logits_max_abs_diff,
            "decoder_sha256_before": self.sha256_before,
            "decoder_sha256_after": self.sha256_after,
        }


@dataclass(frozen=True)
class Fact:
    """A line of the run's facts. `code` sets the value in a typewriter face."""

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table of cells; the first of each row names it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Report:
    """The whole page, top to bottom. What is empty is left out."""

    title: str
    subtitle: str = ""
    headlines: tuple[Headline, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    charts_title: str = "Training"
    cards: tuple[Card, ...] = ()
    cards_note: str = ""
    decoder: DecoderProof | None = None
    facts: tuple[Fact, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The run that a report is about: what it is called, what it takes to repeat it, and what it cost.

    Attributes:
        command: None = that of this process.
    """

    title: str
    subtitle: str = ""
    seed: int
    seconds: float
    peak_memory_mb: float
    device: str = "cpu"
    command: str | None = None

    def lines(self) -> tuple[Fact, ...]:
        """The facts as the page shows them, with revision, machine and versions."""
        command = self.command if self.command is not None else " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        machine = f"{platform.system()} {platform.machine()}, {cores} CPU cores" + (
            "" if self.device == "cpu" else f", {self.device}"
        )
        versions = [f"Python {platform.python_version()}"]
        versions += [f"{name} {metadata.version(name)}" for name in _VERSIONS_OF]
        return (
            Fact("Command", command, code=True),
            Fact("Seed", str(self.seed)),
            Fact("Revision", git_revision() or "not from a git clone", code=True),
            Fact("Machine", machine),
            Fact("Versions", ", ".join(versions)),
            Fact("Time", f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.1f} min"),
            Fact("Peak memory", f"{self.peak_memory_mb:,.0f} MB"),
        )


def render(report: Report) -> str:
    """The report as HTML text."""
    environment = Environment(
        loader=PackageLoader("multimodal"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(report=report)


def write_report(path: str | Path, report: Report) -> None:
    """Write the report to `path`: all of it or, if anything fails, nothing."""
    write_whole(Path(path), render(report))


def write_json(path: str | Path, values: Mapping[str, Any]) -> None:
    """Write numbers as JSON, all or nothing. Tensors of one element become numbers; what is not finite becomes null."""
    text = json.dumps(_plain(values), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(Path(path), text + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, str | int | float) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
