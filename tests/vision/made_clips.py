"""Small video files that tests make for themselves, and what a player that decodes everything sees in them."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
from PIL import Image

TIMES = [Fraction(i, 25) for i in range(40)]
UNEVEN = [Fraction(t, 1000) for t in (0, 40, 80, 90, 100, 110, 300, 800, 810, 900, 1300, 1333, 1500, 1501, 1600, 2400)]
X264 = {"bf": "3", "b-adapt": "0", "preset": "ultrafast", "x264-params": "scenecut=0:bframes=3:b-adapt=0"}


def picture(number: int, width: int = 48, height: int = 32) -> Image.Image:
    """Frame `number`: a moving square on a background of its own brightness."""
    pixels = np.full((height, width, 3), 20 + 5 * number % 200, np.uint8)
    left = 3 * number % (width - 8)
    pixels[8:16, left : left + 8] = (230, 30, 40)
    return Image.fromarray(pixels)


def write_clip(
    path: Path,
    codec: str = "libx264",
    times: Sequence[Fraction] = TIMES,
    *,
    tick: Fraction = Fraction(1, 1000),
    size: tuple[int, int] = (48, 32),
    pixels: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
    rotate: dict[str, Any] | None = None,
    shape: Fraction | None = None,
    pictures: Sequence[Image.Image] = (),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    sound: np.ndarray | None = None,
) -> Path:
    """Write one frame for each of `times` (seconds), and if given a sound track (mono, 16 kHz, float32); the file's
    name says the container."""
    with av.open(str(path), "w", container_options=container or {}) as file:
        stream: Any = file.add_stream(codec, rate=25, options=(X264 if codec == "libx264" else {}) | (options or {}))
        stream.width, stream.height, stream.pix_fmt = size[0], size[1], pixels
        stream.codec_context.time_base, stream.gop_size = tick, gop
        if b_frames:
            stream.max_b_frames = b_frames
        if rotate is not None:
            stream.set_display_rotation(**rotate)
        if shape is not None:
            stream.codec_context.sample_aspect_ratio = shape
        track: Any = None if sound is None else file.add_stream("aac", rate=16_000, layout="mono")
        for number, time in enumerate(times):
            image = pictures[number] if pictures else picture(number, *size)
            mode = "rgba" if image.mode == "RGBA" else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.array(image), mode)
            frame.pts, frame.time_base = int(time / tick), tick
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if sound is not None:
            for start in range(0, len(sound), 1024):
                block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
                block.sample_rate, block.pts = 16_000, start
                file.mux(track.encode(block))
            file.mux(track.encode())
    return path


def watch(path: Path) -> tuple[list[Fraction], Fraction, list[np.ndarray]]:
    """Decode everything: when each frame starts, when the last one ends, and the frames."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        tick = stream.time_base or Fraction(1)
        frames = list(file.decode(stream))
    starts = [None if frame.pts is None else frame.pts * tick for frame in frames]
    if starts[-1] is None:
        starts[-1] = Fraction(len(frames) - 1, 25)  # no frame has a time
    for i in reversed(range(len(starts) - 1)):
        later = starts[i + 1]
        starts[i] = later - Fraction(1, 25) if starts[i] is None and later is not None else starts[i]
    known = sorted(start for start in starts if start is not None)
    gap = (frames[-1].duration or 0) * tick or median(b - a for a, b in pairwise(known))
    return known, known[-1] + gap, [frame.to_ndarray(format="rgb24") for frame in frames]
