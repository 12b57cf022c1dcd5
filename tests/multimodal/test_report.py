"""The report: everything given appears, nothing given is trusted or points outside, and files are whole or absent."""

import base64
import io
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from multimodal.chart import Chart, Curve, curve_from_log, moving_average, ticks
from multimodal.metrics import Scores
from multimodal.report import (
    Answer,
    Card,
    DecoderProof,
    Fact,
    Headline,
    Media,
    Report,
    RunFacts,
    ScoreRow,
    audio_media,
    image_media,
    render,
    write_json,
    write_report,
)

EVIL = "<script>alert('x')</script> \"onload=\" & </title>"


def full_report(text: str = "plain words") -> Report:
    picture = image_media(Image.new("RGB", (40, 20), "red"), text)
    card = Card(
        media=(picture, audio_media(b"RIFF", text)),
        hypothesis=text,
        references=(text, text),
        answers=(Answer(text, text, text, True), Answer(text, "wrong", text, False)),
        insight=(picture,),
        title=text,
        insight_title=text,
    )
    return Report(
        title=text,
        subtitle=text,
        headlines=(Headline(text, text, text, True), Headline(text, text, good=False), Headline("3", "plain")),
        scores=(ScoreRow(Scores("f1", 0.75, 0.25, 0.0), text, text),),
        charts=(Chart(text, (Curve(text, ((0, 3.0), (1, 2.0))), Curve(text, ())), x_label=text, y_label=text),),
        cards=(card,),
        cards_note=text,
        decoder=DecoderProof("a" * 64, "a" * 64, 0.0),
        facts=(Fact(text, text), Fact(text, text, code=True)),
    )


class Page(HTMLParser):
    """Collects tags, attributes and text of a page, and checks that tags nest."""

    VOID = frozenset({"meta", "img", "br", "line", "polyline", "circle"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_comes_from_outside_is_text_and_never_markup() -> None:
    plain, evil = Page(render(full_report())), Page(render(full_report(EVIL)))
    assert evil.tags == plain.tags and "script" not in evil.tags
    assert [name for name, _ in evil.attributes] == [name for name, _ in plain.attributes]
    assert evil.text.count(EVIL) == plain.text.count("plain words") >= 20


def test_page_points_nowhere_outside_itself() -> None:
    html = render(full_report())
    references = [value for name, value in Page(html).attributes if name in ("src", "href", "srcset", "data", "poster")]
    assert references and all(value.startswith("data:") for value in references)
    assert not re.search(r"https?:|url\(|@import", html)
    for uri in ("https://example.org/a.png", "javascript:alert(1)", "data:text/html,x", "data:audio/wav;base64,"):
        with pytest.raises(ValueError, match="data URI"):
            Media("image", uri)


def test_empty_sections_are_left_out() -> None:
    page = Page(render(Report(title="Only a title")))
    assert "h2" not in page.tags and page.text.count("Only a title") == 2


def test_scores_stand_beside_their_controls() -> None:
    html = render(full_report())
    row = re.search(r"<tbody>.*?</tbody>", html, re.S)
    assert row is not None
    assert re.findall(r">(\d\.\d{3})<", row.group()) == ["0.750", "0.250", "0.000"]
    assert re.findall(r"width: ([\d.]+)%", row.group()) == ["100.0", "33.3", "0.0"]
    assert "3.0×, control is 0" in row.group()


@pytest.mark.parametrize(("after", "difference"), [("b" * 64, 0.0), ("a" * 64, 1e-9), ("a" * 64, math.nan)])
def test_a_decoder_that_changed_is_called_changed(after: str, difference: float) -> None:
    assert "✓ unchanged" in render(Report("t", decoder=DecoderProof("a" * 64, "a" * 64, 0.0)))
    html = render(Report("t", decoder=DecoderProof("a" * 64, after, difference)))
    assert "✗ changed" in html and "✓ unchanged" not in html and after in html


def test_pictures_survive_the_data_uri() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 90, 3), dtype=np.uint8))
    exact = Image.open(io.BytesIO(base64.b64decode(image_media(picture, lossless=True).uri.split(",")[1])))
    assert np.array_equal(np.asarray(exact), np.asarray(picture))
    small = Image.open(io.BytesIO(base64.b64decode(image_media(picture, max_side=45).uri.split(",")[1])))
    assert small.size == (45, 15) and small.format == "JPEG" and picture.size == (90, 30)
    for mode in ("L", "P", "RGBA", "CMYK", "I;16"):
        assert image_media(Image.new(mode, (8, 8))).kind == "image"


def test_chart_is_well_formed_and_follows_its_values() -> None:
    points = tuple((float(x), 5.0 - x / 100) for x in range(400))
    svg = ElementTree.fromstring(str(Chart("Loss", (Curve("train", points),)).svg()))
    raw, line = (element.attrib["points"] for element in svg.iter("polyline"))
    for drawn in (raw, line):
        pairs = [tuple(map(float, pair.split(","))) for pair in drawn.split()]
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(pairs))
    assert svg.findall(".//*[@class='end']")[0].text == "1.05"


def test_chart_survives_unusual_values() -> None:
    for points in ((), ((0, math.nan),), ((3, 2.0),), ((0, 1.0), (1, 1.0)), ((0, -1e9), (1, math.inf), (2, 1e-9))):
        svg = str(Chart("Loss", (Curve("train", points),)).svg())
        assert "nan" not in svg and "inf" not in svg
        ElementTree.fromstring(svg)
    many = Curve("long", tuple((float(x), 1.0) for x in range(100_000)))
    assert len(Chart("Loss", (many,)).svg()) < 50_000


def test_moving_average_keeps_lines_straight_and_smooths_noise() -> None:
    straight = [0.5 * x for x in range(50)]
    assert moving_average(straight, 9)[:-4] == pytest.approx(straight[:-4])
    assert moving_average([1.0] * 40 + [2.0], 9)[-1] == pytest.approx(1.2)  # the last one is no single value
    noise = list(np.random.default_rng(0).normal(size=500))
    smooth = moving_average(noise, 25)
    assert len(smooth) == len(noise) and np.std(smooth) < 0.4 * np.std(noise)
    assert moving_average([], 5) == [] and moving_average([2.0], 5) == [2.0]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.34), (-3, 12_000), (1e-9, 2e-9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    step = found[1] - found[0]
    assert 3 <= len(found) <= 8 and all(low - 1e-9 * step <= tick <= high + 1e-9 * step for tick in found)
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


def test_curve_is_read_from_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.5}\n{"step": 1, "evaluation": {"f1": 0.1}}\n\n{"step": 2, "loss": 2}\n')
    assert curve_from_log(log) == Curve("loss", ((1.0, 2.5), (2.0, 2.0)))


def test_files_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "new" / "report.html"
    write_report(target, full_report())
    before = target.read_text(encoding="utf-8")
    assert before == render(full_report())

    def full_disk(source: object, destination: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multimodal.files.os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_report(target, Report(title="other"))
    assert target.read_text(encoding="utf-8") == before and list(target.parent.iterdir()) == [target]


def test_json_holds_plain_numbers_only(tmp_path: Path) -> None:
    values = {"f1": np.float32(0.5), "n": np.int64(3), "lost": math.nan, "deep": {"all": (1, math.inf)}, "ok": True}
    write_json(tmp_path / "metrics.json", values)
    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == {"f1": 0.5, "n": 3, "lost": None, "deep": {"all": [1, None]}, "ok": True}


def test_run_facts_name_the_command_and_the_cost() -> None:
    run = RunFacts(title="A run", seed=3, seconds=90, peak_memory_mb=1234.5, command="graft x")
    facts = {fact.name: fact.value for fact in run.lines()}
    assert facts["Command"] == "graft x" and facts["Seed"] == "3"
    assert facts["Time"] == "90 s" and facts["Peak memory"] == "1,234 MB"
    assert "torch" in facts["Versions"] and "CPU" in facts["Machine"]
