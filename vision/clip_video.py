"""Video files through PyAV (FFmpeg): the uniformly sampled frames of a clip, without ever holding the others.

The times of all frames are first read from the packets, which decodes nothing; then the decoder starts at the key frame
before each frame wanted. Where that does not work to the letter (streams without times, a missing index, broken
packets), the whole clip is decoded twice, once for the times and once for the frames: slower, and just as exact.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from math import sqrt
from statistics import median_low
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
from PIL import Image

from multimodal.errors import UserError
from multimodal.files import open_container
from vision.clip_sampling import Clip, Timeline
from vision.picture import open_picture

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.sidedata.sidedata import SideData
    from av.stream import Stream
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

EXPECTED = "expected a video (MP4, WebM, MKV, AVI, GIF), a picture or a folder of pictures"
FRAME_PIXELS = 1920 * 1088
"""Larger frames are reduced to this while decoding: still more than all tiles together show."""
USUAL_RATE = Fraction(25)
"""Frames a second, where a file says nothing at all about time."""

# Display matrix (signs of a, b, c, d in x' = ax + cy, y' = bx + dy) -> what turns the frame upright.
_UPRIGHT: dict[tuple[int, ...], Image.Transpose] = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


def read_video(file: BinaryIO, *, name: str, count: int, threads: int = 0) -> Clip:
    """Read `count` uniformly sampled frames of a video file, turned upright, with square pixels.

    Args:
        file: open for reading, seekable.
        name: what error messages call the file.
        count: frames to sample; the clip has fewer where the file has fewer (`Timeline.shown`).
        threads: of the decoder; 0 = as many as FFmpeg finds useful.

    Raises:
        UserError: not a video, no video stream, no decoder for it, or no frame that decodes.
    """
    with _open(file, name) as container:
        stream = _video_stream(container, name, threads)
        index, note = _read_index(container, stream)
        if index is not None:
            frames = _frames_by_seeking(container, stream, index, index.timeline.shown(count))
            if frames is not None:
                return index.timeline.clip(frames, note=note)
    with _open(file, name) as container:
        timeline, broken = _decode_times(container, _video_stream(container, name, threads))
    if not timeline.starts:
        raise UserError(f"{name}: none of its frames can be decoded; {EXPECTED}")
    if broken:
        note = "; ".join(filter(None, (note, f"{broken} damaged packets left out")))
    wanted = timeline.shown(count)
    with _open(file, name) as container:
        stream = _video_stream(container, name, threads)
        decoded = enumerate(islice(_Decoder(container, stream), wanted[-1] + 1))
        converter = _converter()
        frames = {number: _picture(frame, stream, converter) for number, frame in decoded if number in wanted}
    return timeline.clip(frames, note=note)


@dataclass(frozen=True)
class _Index:
    """What the packets say: `pts` of the frames, rising, and for each key frame its pts and where to seek for it."""

    timeline: Timeline
    pts: list[int]
    keys: list[tuple[int, int]]


class _Decoder:
    """Frames as they come out, up to where the file cannot be read any further; damaged packets are counted."""

    def __init__(self, container: "InputContainer", stream: "VideoStream") -> None:
        self.container = container
        self.stream = stream
        self.broken = 0

    def __iter__(self) -> Iterator["VideoFrame"]:
        from av.error import FFmpegError

        for packet in _packets(self.container, self.stream):
            try:
                frames = packet.decode()
            except FFmpegError:
                self.broken += 1
                continue
            yield from cast("list[VideoFrame]", frames)


def _open(file: BinaryIO, name: str) -> "InputContainer":
    from av.error import FFmpegError

    file.seek(0)
    start = file.read(8)
    file.seek(0)
    try:
        container = open_container(file)
    except FFmpegError as error:
        what = f"the file starts with {start!r}: {error.strerror}"
        raise UserError(f"{name}: not a video ({what}); {EXPECTED}") from error
    if container.format.name == "tty":  # FFmpeg draws any text, by the ending of its name
        container.close()
        raise UserError(f"{name}: not a video (the file starts with {start!r}: a text); {EXPECTED}")
    return container


def _video_stream(container: "InputContainer", name: str, threads: int) -> "VideoStream":
    from av.stream import Disposition

    stream = cast("VideoStream | None", container.streams.best("video"))
    if stream is None or stream.disposition & Disposition.attached_pic:  # a song with its cover
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise UserError(f"{name}: no video stream (found {found}); {EXPECTED}")
    if stream.codec_context is None:
        raise UserError(f"{name}: PyAV has no decoder for its kind of video; expected H.264 or another usual one")
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = threads
    return stream


def _packets(container: "InputContainer", *streams: "VideoStream") -> Iterator["Packet"]:
    from av.error import FFmpegError

    try:
        yield from container.demux(*streams)
    except FFmpegError:
        return


def _read_index(container: "InputContainer", stream: "VideoStream") -> tuple[_Index | None, str]:
    """The index, None where packets alone do not tell it, and a note if the file ends before the time it announces."""
    durations: dict[int, int] = {}
    keys: list[tuple[int, int]] = []
    ends: dict[int, int] = {}
    # AVI holds no times of presentation: with reordered frames those of its packets are guesses.
    certain = container.format.name != "avi" or not stream.codec_context.has_b_frames
    for packet in _packets(container):
        number, pts, duration = packet.stream_index, packet.pts, packet.duration or 0
        if pts is None:
            certain = certain and not (number == stream.index and packet.size)  # the last, empty packet has no time
            continue
        ends[number] = max(pts + duration, ends.get(number, pts))
        if number != stream.index:
            continue
        if packet.is_keyframe:
            keys.append((pts, pts if packet.dts is None else min(pts, packet.dts)))
        if not packet.is_discard:
            certain = certain and pts not in durations
            durations[pts] = duration
    if not durations:
        return None, ""
    tick = _tick(stream)
    pts_rising = sorted(durations)
    starts = [pts * tick for pts in pts_rising]
    timeline = Timeline(starts, _end(starts, durations[pts_rising[-1]] * tick, stream))
    last = max(end * _tick(container.streams[number]) for number, end in ends.items())
    note = _missing_end(container, stream, timeline, last)
    return (_Index(timeline, pts_rising, sorted(keys)) if certain else None), note


def _tick(stream: "Stream") -> Fraction:
    return stream.time_base or Fraction(1)


def _end(starts: list[Fraction], duration: Fraction, stream: "VideoStream") -> Fraction:
    """When the last frame ends; where the file does not say, it lasts as long as frames usually do."""
    if not duration and len(starts) > 1:
        duration = median_low(after - before for before, after in pairwise(starts))
    return starts[-1] + (duration or 1 / (stream.average_rate or USUAL_RATE))


def _missing_end(container: "InputContainer", stream: "VideoStream", timeline: Timeline, last: Fraction) -> str:
    """Compare with the duration in the header, on which nothing else relies: it may be missing or wrong."""
    if stream.duration is not None:
        announced, found = stream.duration * _tick(stream), timeline.end - timeline.starts[0]
    elif container.duration is not None:
        announced, found = Fraction(container.duration, 10**6), last - Fraction(container.start_time or 0, 10**6)
    else:
        return ""
    if found >= announced * Fraction(95, 100) - Fraction(1, 10):
        return ""
    return f"ends after {float(found):.2f} s of the {float(announced):.2f} s that it announces"


def _frames_by_seeking(
    container: "InputContainer", stream: "VideoStream", index: _Index, wanted: list[int]
) -> dict[int, Image.Image] | None:
    """The frames with these numbers; None unless each of them came out with exactly its time."""
    from av.error import FFmpegError

    pictures: dict[int, Image.Image] = {}
    converter = _converter()
    decoded: Iterator[VideoFrame] = iter(())
    shown: VideoFrame | None = None
    ahead: VideoFrame | None = None
    for number in wanted:
        pts = index.pts[number]
        key = bisect_right(index.keys, pts, key=lambda key: key[0]) - 1
        if key < 0:
            return None
        key_pts, seek_to = index.keys[key]
        if not pictures or (ahead is not None and ahead.pts is not None and key_pts > ahead.pts):
            try:
                container.seek(seek_to, stream=stream)
            except FFmpegError:
                return None
            decoded = iter(_Decoder(container, stream))
            shown, ahead = None, next(decoded, None)
        while ahead is not None and ahead.pts is not None and ahead.pts <= pts:
            shown, ahead = ahead, next(decoded, None)
        if shown is None or shown.pts != pts:
            return None
        pictures[number] = _picture(shown, stream, converter)
    return pictures


def _decode_times(container: "InputContainer", stream: "VideoStream") -> tuple[Timeline, int]:
    """Times of all frames by decoding them, and how many packets could not be decoded."""
    decoder = _Decoder(container, stream)
    times = [(frame.pts, frame.duration or 0) for frame in decoder]
    if not times:
        return Timeline([], Fraction(0)), decoder.broken
    tick = _tick(stream)
    starts = _fill([None if pts is None else pts * tick for pts, _ in times], 1 / (stream.average_rate or USUAL_RATE))
    return Timeline(starts, _end(starts, times[-1][1] * tick, stream)), decoder.broken


def _fill(times: list[Fraction | None], usual: Fraction) -> list[Fraction]:
    """Give frames without a time one at the usual distance. Times that fall were those of the packets: sorted."""
    known = next((number for number, time in enumerate(times) if time is not None), 0)
    first = (times[known] or Fraction(0)) - known * usual
    filled: list[Fraction] = []
    for number, time in enumerate(times):
        if number <= known:
            filled.append(first + number * usual)
        else:
            filled.append(filled[-1] + usual if time is None else time)
    return sorted(filled)


def _converter() -> "VideoReformatter":
    """Of pixel formats. One for all frames of a clip, and no threads: both took many times as long as a small frame."""
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def _picture(frame: "VideoFrame", stream: "VideoStream", converter: "VideoReformatter") -> Image.Image:
    """RGB with square pixels, at most `FRAME_PIXELS` of them, upright."""
    wide, high = float(frame.width * (stream.sample_aspect_ratio or 1)), float(frame.height)
    shrink = min(1.0, sqrt(FRAME_PIXELS / (wide * high)))
    width, height = max(1, round(wide * shrink)), max(1, round(high * shrink))
    scaled = frame
    if (width, height) != (frame.width, frame.height):
        scaled = frame.reformat(width, height, interpolation="AREA")
    if any(component.is_alpha for component in frame.format.components):
        picture = open_picture(cast(np.ndarray, scaled.to_ndarray(format="rgba")))
    else:
        picture = converter.reformat(scaled, format="rgb24", threads=1).to_image()
    turn = _UPRIGHT.get(_display_matrix(frame))
    return picture if turn is None else picture.transpose(turn)


def _display_matrix(frame: "VideoFrame") -> tuple[int, ...]:
    """Signs of (a, b, c, d); those of an upright frame where it has no matrix."""
    for data in cast("Iterable[SideData]", frame.side_data):
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
            return tuple(round(value / 65536) for value in (a, b, c, d))
    return 1, 0, 0, 1
