"""Any clip that a person may hand over -> its uniformly sampled frames with their times, or a `UserError` of one line.

Videos of every usual kind, animated pictures, a folder or a list of frame pictures; a still picture is a clip of one
frame. Never more than the sampled frames are held in memory. Damaged files give what decodes, and a note.
"""

import io
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from multimodal.errors import UserError
from multimodal.files import open_file
from vision.clip_sampling import Clip, Timeline
from vision.clip_video import EXPECTED, read_video
from vision.picture import PICTURE_SUFFIXES, PictureSource, open_picture

ClipSource = PictureSource | Sequence[PictureSource]

_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")  # in other formats several frames mean pages, sizes or thumbnails


def read_clip(
    source: ClipSource, *, count: int, name: str | None = None, frame_rate: float = 25.0, threads: int = 0
) -> Clip:
    """Read `count` uniformly sampled frames of a clip (spec A5.1; `Timeline.shown` says which).

    Args:
        source: a video, an animated or a still picture (file or bytes), a folder of frame pictures (in natural order:
            2.png before 10.png), a list of pictures, or an array [frames, H, W, C] or tensor [frames, C, H, W].
        count: frames to sample. The clip has fewer where the source has fewer: frames never repeat.
        name: what error messages call the clip; a file has its path.
        frame_rate: frames a second of a folder, a list or an array, which have no times of their own.
        threads: of the video decoder; 0 = as many as FFmpeg finds useful.

    Raises:
        UserError: missing, empty, neither video nor picture, or nothing in it decodes.

    Example:
        >>> clip = read_clip("cat.mp4", count=16)
        >>> clip.frames[0].size, clip.seconds[0], clip.positions[0]
        ((640, 360), 0.28, 0.03)
    """
    if isinstance(source, list | tuple) or (isinstance(source, np.ndarray | torch.Tensor) and source.ndim == 4):
        return _from_pictures(list(source), name=name or "the frames given", count=count, frame_rate=frame_rate)
    if isinstance(source, Image.Image):
        return _from_picture(source, name or "the image given", count)
    if isinstance(source, np.ndarray | torch.Tensor):
        return _still(open_picture(source, name=name))
    if isinstance(source, bytes):
        return _from_file(io.BytesIO(source), name or "the clip's bytes", count, threads)
    path = Path(source)  # pyright: ignore[reportArgumentType] -- only str and Path are left
    if path.is_dir():
        files = sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES), key=_natural)
        return _from_pictures(files, name=name or str(path), count=count, frame_rate=frame_rate)
    with open_file(path, expected=EXPECTED) as file:
        return _from_file(file, name or str(path), count, threads)


def _from_pictures(pictures: Sequence[PictureSource], *, name: str, count: int, frame_rate: float) -> Clip:
    if not pictures:
        raise UserError(f"{name}: no pictures; {EXPECTED}")
    if not frame_rate > 0:
        raise UserError(f"{name}: {frame_rate} frames a second, expected more than 0")
    rate = Fraction(frame_rate)
    timeline = Timeline([number / rate for number in range(len(pictures))], len(pictures) / rate)
    return timeline.clip({number: open_picture(pictures[number]) for number in timeline.shown(count)})


def _from_file(file: BinaryIO, name: str, count: int, threads: int) -> Clip:
    if not file.read(1):
        raise UserError(f"{name}: empty (0 bytes); {EXPECTED}")
    file.seek(0)
    Image.init()
    # Pillow claims MPEG videos too, and would run Ghostscript on EPS.
    pictures = [kind for kind in Image.OPEN if kind not in ("EPS", "MPEG")]
    try:
        image = Image.open(file, formats=pictures)
    except Image.UnidentifiedImageError:
        return read_video(file, name=name, count=count, threads=threads)
    except Exception:  # a broken picture: `open_picture` knows how to say it
        image = None
    if image is not None and _frame_count(image) > 1:
        return _from_picture(image, name, count)
    file.seek(0)
    return _still(open_picture(file.read(), name=name))


def _still(picture: Image.Image) -> Clip:
    return Timeline([Fraction(0)], Fraction(0)).clip({0: picture})


def _frame_count(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
    except Exception:  # a broken animation: its first frame may still decode
        return 1


def _from_picture(image: Image.Image, name: str, count: int) -> Clip:
    """A picture that may be an animation: played twice, for the times and for the frames."""
    frames = _frame_count(image)
    if frames == 1:
        return _still(open_picture(image, name=name))
    starts = [Fraction(0)]
    for frame in _play(image):
        # Browsers show a frame that has no duration for a tenth of a second.
        starts.append(starts[-1] + Fraction(frame.info.get("duration") or 100) / 1000)
    if len(starts) == 1:
        return _still(open_picture(image, name=name))  # which says what is wrong with it
    timeline = Timeline(starts[:-1], starts[-1])
    wanted = timeline.shown(count)
    note = f"only {len(starts) - 1} of {frames} frames can be decoded" if len(starts) <= frames else ""
    played = enumerate(_play(image))
    return timeline.clip({n: open_picture(frame, name=name) for n, frame in played if n in wanted}, note=note)


def _play(image: Image.Image) -> Iterator[Image.Image]:
    """Every frame of an animation, up to the first that cannot be decoded; the same image object each time."""
    for number in range(_frame_count(image)):
        try:
            image.seek(number)
            image.load()
        except Exception:  # decoders raise whatever their parsing runs into
            return
        yield image


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: numbers in names by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]
