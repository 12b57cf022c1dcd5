"""Pictures -> an MP4 video, so that made clips take the same way in as filmed ones."""

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PIL import Image

from multimodal.errors import UserError

if TYPE_CHECKING:
    from av.video.stream import VideoStream

# Codecs in order of preference, with settings at which thin shapes keep their colours.
_QUALITY = {"libx264": {"crf": "18"}, "mpeg4": {"qmin": "2", "qmax": "3"}}


def write_mp4(frames: Iterable[Image.Image], path: Path, *, fps: float) -> None:
    """Write pictures of one size as an MP4 video, H.264 where PyAV has it, else MPEG-4; all or nothing.

    Raises:
        UserError: no frames, frames of several sizes, or a rate that is not positive.
    """
    import av

    if not fps > 0:
        raise UserError(f"{path}: {fps} frames a second, expected more than 0")
    codec = next(name for name in _QUALITY if name in av.codecs_available)
    rate = Fraction(fps).limit_denominator(1001)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    size = None
    try:
        with av.open(draft, "w", format="mp4") as container:
            stream = cast("VideoStream", container.add_stream(codec, rate=rate, options=_QUALITY[codec]))
            for picture in frames:
                if size is None:
                    size = stream.width, stream.height = picture.size
                    # Chroma at half the resolution, which every player shows, needs even sides.
                    halves = codec == "mpeg4" or not (picture.width % 2 or picture.height % 2)
                    stream.pix_fmt = "yuv420p" if halves else "yuv444p"
                if picture.size != size:
                    raise UserError(f"{path}: frames of {size} and {picture.size} pixels, expected one size")
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            if size is None:
                raise UserError(f"{path}: no frames to write, expected one or more")
            container.mux(stream.encode())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
