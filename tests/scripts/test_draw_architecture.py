"""The README's drawing is the one that the script makes, and it shows every way into the decoder."""

from pathlib import Path
from xml.etree import ElementTree

from scripts.draw_architecture import HEIGHT, WIDTH, draw
from tests.scripts.conftest import Cli

DOCS = Path(__file__).parents[2] / "docs"
SVG = "{http://www.w3.org/2000/svg}"


def test_the_drawing_in_the_docs_is_what_the_script_draws(cli: Cli, tmp_path: Path) -> None:
    assert (DOCS / "architecture.svg").read_text(encoding="utf-8") == draw(), "run scripts.draw_architecture"
    assert cli("draw_architecture", "--out", tmp_path / "new" / "a.svg").status == 0
    assert (tmp_path / "new" / "a.svg").read_text(encoding="utf-8") == draw()
    ended = cli("draw_architecture", "--out", tmp_path / "a.png")
    assert ended.status == 2 and "ends in .svg" in ended.err and not (tmp_path / "a.png").exists()


def test_it_shows_pictures_clips_and_speech_on_one_decoder() -> None:
    words = [element.text or "" for element in ElementTree.fromstring(draw()).iter(f"{SVG}text")]
    for name in ("image encoder", "projector", "temporal aggregator", "speech encoder", "speech adapter"):
        assert words.count(name) == 1
    order = [word for word in words if word.startswith("gated") and "cross" in word]  # from the prompt upwards
    assert [word.split()[1] for word in order] == ["image", "video", "image"]


def test_everything_lies_on_the_sheet() -> None:
    for element in ElementTree.fromstring(draw()).iter():
        if {"x", "y"} <= set(element.keys()):
            x, y = float(element.attrib["x"]), float(element.attrib["y"])
            width, height = (float(element.get(side, 0)) for side in ("width", "height"))
            assert 0 <= x <= x + width <= WIDTH and 0 <= y <= y + height <= HEIGHT
