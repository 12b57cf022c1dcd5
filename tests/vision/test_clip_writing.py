"""Written clips come back: as many frames, the same pictures within what the codec loses, the right times."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from multimodal.errors import UserError
from tests.vision.made_clips import picture
from vision.clip import read_clip
from vision.clip_writing import write_mp4


@pytest.mark.parametrize("size", [(64, 64), (48, 32), (47, 33)])
@pytest.mark.parametrize("codec", ["", "mpeg4"])
def test_a_written_clip_comes_back(
    tmp_path: Path, size: tuple[int, int], codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if codec:  # a PyAV without H.264
        monkeypatch.setattr(av, "codecs_available", {codec})
    frames = [picture(number, *size) for number in range(12)]
    write_mp4(iter(frames), tmp_path / "a.mp4", fps=8)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    clip = read_clip(tmp_path / "a.mp4", count=100)
    assert clip.seconds == pytest.approx([number / 8 for number in range(12)])
    assert clip.duration == pytest.approx(1.5)
    for written, read in zip(frames, clip.frames, strict=True):
        assert read.size == size
        assert np.abs(np.array(written, int) - np.array(read, int)).mean() < 6


def test_an_uneven_rate(tmp_path: Path) -> None:
    write_mp4([picture(number) for number in range(10)], tmp_path / "a.mp4", fps=29.97)
    assert read_clip(tmp_path / "a.mp4", count=1).duration == pytest.approx(10 / 29.97, rel=1e-3)


def test_nothing_is_left_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"kept")
    for frames, words in (([], "no frames"), ([picture(0), Image.new("RGB", (8, 8))], "expected one size")):
        with pytest.raises(UserError, match=words):
            write_mp4(frames, tmp_path / "a.mp4", fps=8)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"kept"]
    with pytest.raises(UserError, match="0 frames a second"):
        write_mp4([picture(0)], tmp_path / "b.mp4", fps=0)
