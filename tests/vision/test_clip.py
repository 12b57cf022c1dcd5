"""Every way to hand over a clip: videos, animations, folders, lists, still pictures; the rest refused in one line."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from multimodal.errors import UserError
from tests.vision.made_clips import picture, write_clip
from vision.clip import read_clip

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
FAST, PALE = [100, 50, 30, 200, 120, 100], {"lossless": True}


def shades(count: int = 6) -> list[Image.Image]:
    return [Image.new("RGB", (20, 16), (40 * i, 0, 255 - 40 * i)) for i in range(count)]


def reds(frames: tuple[Image.Image, ...]) -> list[int]:
    return [round(frame.getpixel((10, 8))[0] / 40) for frame in frames]  # pyright: ignore


def refuses(source: Path | bytes | list[Image.Image], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_clip(source, count=4)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    for word in (str(source) if isinstance(source, Path) else "the", *words):
        assert word in message


def test_a_video_file_its_bytes_and_a_path_as_text(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    clips = [read_clip(source, count=4) for source in (path, str(path), path.read_bytes())]
    assert [clip.seconds for clip in clips] == [pytest.approx((0.2, 0.6, 1.0, 1.4))] * 3
    assert len({tuple(frame.tobytes() for frame in clip.frames) for clip in clips}) == 1


@pytest.mark.parametrize(
    ("name", "options"), [("a.gif", {}), ("a.webp", PALE), ("a.png", {}), ("a.avif", {"quality": 100})]
)
def test_animations_have_the_times_of_their_frames(tmp_path: Path, name: str, options: dict[str, int]) -> None:
    first, *others = shades()
    first.save(tmp_path / name, save_all=True, append_images=others, duration=FAST, **options)
    clip = read_clip(tmp_path / name, count=10)
    assert reds(clip.frames) == [0, 1, 2, 3, 4, 5]
    assert clip.seconds == pytest.approx((0, 0.1, 0.15, 0.18, 0.38, 0.5), abs=1e-6)
    assert clip.duration == pytest.approx(0.6, abs=1e-6) and clip.note == ""
    some = read_clip(tmp_path / name, count=3)  # at 0.1, 0.3 and 0.5 s
    assert reds(some.frames) == [1, 3, 5] and some.seconds == pytest.approx((0.1, 0.18, 0.5), abs=1e-6)
    with Image.open(tmp_path / name) as opened:
        assert reds(read_clip(opened, count=3).frames) == [1, 3, 5]


def test_gif_frames_without_a_duration_last_a_tenth_of_a_second_and_transparency_is_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    dots = [clear.copy() for _ in range(3)]
    for number, dot in enumerate(dots):
        dot.putpixel((number, 0), (*RED, 255))
    dots[0].save(tmp_path / "a.gif", save_all=True, append_images=dots[1:], disposal=2)
    clip = read_clip(tmp_path / "a.gif", count=8)
    assert clip.seconds == pytest.approx((0, 0.1, 0.2)) and clip.duration == pytest.approx(0.3)
    for number, frame in enumerate(clip.frames):
        assert frame.getpixel((number, 0)) == RED and frame.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["a.gif", "a.png"])
def test_a_truncated_animation_gives_what_decodes(tmp_path: Path, name: str) -> None:
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)) for i in range(6)]
    noise[0].save(tmp_path / name, save_all=True, append_images=noise[1:], duration=100)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 6 // 10])
    clip = read_clip(tmp_path / name, count=10)
    assert 2 <= len(clip.frames) < 6 and "frames can be decoded" in clip.note
    (tmp_path / name).write_bytes(data[:300])
    refuses(tmp_path / name)


def test_a_folder_of_pictures_in_natural_order(tmp_path: Path) -> None:
    for number, shade in enumerate(shades()):
        shade.save(tmp_path / f"frame{9 + number}.png")  # frame9 before frame10
    (tmp_path / "notes.txt").write_text("not a frame")
    clip = read_clip(tmp_path, count=3, frame_rate=10)
    assert reds(clip.frames) == [1, 3, 5] and clip.seconds == pytest.approx((0.1, 0.3, 0.5))
    assert clip.duration == pytest.approx(0.6)
    (tmp_path / "frame10.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"frame10\.png"):
        read_clip(tmp_path, count=10)


def test_frames_in_memory() -> None:
    pictures = shades()
    array = np.stack([np.asarray(shade) for shade in pictures])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    for source in (pictures, tuple(pictures), array, tensor):
        clip = read_clip(source, count=3)
        assert reds(clip.frames) == [1, 3, 5] and clip.positions == pytest.approx((1 / 6, 3 / 6, 5 / 6))


def test_a_still_picture_is_a_clip_of_one_frame(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), GREEN).save(tmp_path / "a.jpg", quality=95)
    Image.new("RGB", (8, 6), GREEN).save(tmp_path / "a.gif")
    pages = [Image.new("RGB", (8, 6), color) for color in (GREEN, RED)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    names = ("a.jpg", "a.gif", "pages.tiff")
    for source in (
        *(tmp_path / name for name in names),
        pages[0],
        np.asarray(pages[0]),
        (tmp_path / "a.jpg").read_bytes(),
    ):
        clip = read_clip(source, count=8)
        assert (clip.seconds, clip.duration, clip.positions) == ((0.0,), 0.0, (0.0,))
        assert np.abs(np.array(clip.frames[0], int) - np.array(GREEN)).max() < 6


def test_what_cannot_be_a_clip_is_refused_in_one_line(tmp_path: Path) -> None:
    refuses(tmp_path / "none.mp4", "no such file", "video")
    refuses(tmp_path, "no pictures")
    (tmp_path / "empty.mp4").touch()
    refuses(tmp_path / "empty.mp4", "0 bytes")
    (tmp_path / "text.mp4").write_text("hello " * 100)
    refuses(tmp_path / "text.mp4", "not a video")
    refuses(b"", "0 bytes")
    refuses(b"\xff" * 5000, "not a video")
    refuses([], "no pictures")
    (tmp_path / "half.jpg").write_bytes(_jpeg()[:600])
    refuses(tmp_path / "half.jpg", "broken")
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="frames a second"):
            read_clip(shades(), count=2, frame_rate=rate)
    with pytest.raises(UserError, match="expected 1 or more"):
        read_clip(shades(), count=0)


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    picture(0, 200, 200).save(buffer, "jpeg")
    return buffer.getvalue()
