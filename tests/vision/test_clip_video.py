"""Video files: sampled frames are those of a player that decodes everything, whatever the container and the codec."""

import io
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from multimodal.errors import UserError
from tests.vision.made_clips import TIMES, UNEVEN, picture, watch, write_clip
from vision import clip_video
from vision.clip_sampling import Clip
from vision.clip_video import read_video

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
LATE = [time - Fraction(1, 2) for time in TIMES]
KEEP = {"avoid_negative_ts": "disabled"}

SEEKABLE: dict[str, dict[str, Any]] = {
    "b-frames.mp4": {},
    "open-gop.mkv": {"options": {"x264-params": "scenecut=0:bframes=3:b-adapt=0:open-gop=1"}},
    "uneven.mp4": {"times": UNEVEN},
    "uneven.mkv": {"times": UNEVEN, "gop": 4},
    "no-duration.mkv": {"container": {"live": "1"}},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}},
    "late.mp4": {"times": [time + 3 for time in TIMES]},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime"}},
    "mpeg4.avi": {"codec": "mpeg4", "tick": Fraction(1, 25)},
    "transport.ts": {},
    "one-gop.mp4": {"gop": 100},
}
ANY: dict[str, dict[str, Any]] = SEEKABLE | {
    "raw.h264": {},
    "negative.mkv": {"times": LATE, "container": KEEP},
    "negative.mp4": {"times": LATE, "container": KEEP, "tick": Fraction(1, 25)},
    "b-frames.avi": {"codec": "mpeg4", "b_frames": 2, "tick": Fraction(1, 25)},
    "h264.avi": {"tick": Fraction(1, 25)},
    "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2, "tick": Fraction(1, 25)},
    "flash.flv": {},
}


def read(path: Path, count: int) -> Clip:
    with path.open("rb") as file:
        return read_video(file, name=str(path), count=count, threads=1)


def refuses(data: bytes, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_video(io.BytesIO(data), name="it.mp4", count=4)
    message = str(caught.value)
    assert "\n" not in message
    for word in ("it.mp4", "expected", *words):
        assert word in message


Watched = tuple[list[Fraction], Fraction, list[np.ndarray]]


def expected(watched: Watched, count: int) -> tuple[list[float], float, list[np.ndarray]]:
    """By the definition alone: the last frame that has started at the centre of each interval."""
    starts, end, frames = watched
    span = end - starts[0]
    chosen = range(len(frames))
    if len(frames) > count:
        centres = [starts[0] + span * (2 * k + 1) / (2 * count) for k in range(count)]
        chosen = sorted({max(i for i, start in enumerate(starts) if start <= centre) for centre in centres})
    return [float(starts[i] - starts[0]) for i in chosen], float(span), [frames[i] for i in chosen]


def same(first: Clip, second: Clip) -> bool:
    return (first.seconds, first.duration) == (second.seconds, second.duration) and all(
        np.array_equal(a, b) for a, b in zip(first.frames, second.frames, strict=True)
    )


@pytest.mark.parametrize("name", ANY)
def test_sampled_frames_are_those_of_a_player_that_decodes_everything(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, **ANY[name])
    watched = watch(path)
    for count in (1, 5, 16, 100):
        clip = read(path, count)
        seconds, duration, frames = expected(watched, count)
        assert clip.seconds == pytest.approx(seconds)
        assert clip.duration == pytest.approx(duration)
        assert all(np.array_equal(a, b) for a, b in zip(clip.frames, frames, strict=True))
        assert clip.note == ""
    assert len(clip.frames) == len(watched[2])


@pytest.mark.parametrize("name", SEEKABLE)
def test_only_what_is_needed_is_decoded_and_only_the_sampled_frames_are_kept(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / name, **SEEKABLE[name])
    seen: dict[str, int] = {"decoded": 0, "converted": 0}

    def counting(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any) -> Any:
            seen[kind] += 1
            return function(*args)

        return count

    def never(*_: object) -> None:
        raise AssertionError("decoded from end to end")

    monkeypatch.setattr(clip_video, "_decode_times", never)
    monkeypatch.setattr(clip_video, "_picture", counting("converted", clip_video._picture))
    decode = clip_video._Decoder.__iter__
    monkeypatch.setattr(
        clip_video._Decoder,
        "__iter__",
        lambda self: (counting("decoded", lambda frame: frame)(f) for f in decode(self)),
    )
    assert len(read(path, 2).frames) == seen["converted"] == 2
    if name not in ("one-gop.mp4", "mpeg4.avi", "uneven.mp4") and len(SEEKABLE[name].get("times", TIMES)) == 40:
        assert seen["decoded"] <= 32  # two groups of 12, and what a decoder hands out in advance


@pytest.mark.parametrize("name", ["b-frames.mp4", "uneven.mkv", "vp9.webm"])
def test_decoding_from_end_to_end_gives_the_same(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / name, **SEEKABLE[name])
    by_seeking = read(path, 5)
    monkeypatch.setattr(clip_video, "_frames_by_seeking", lambda *_: None)
    assert same(read(path, 5), by_seeking)


def test_a_container_that_seeks_to_the_wrong_place_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4")
    right = read(path, 2)
    index_of = clip_video._read_index

    def astray(*args: Any) -> Any:
        index, note = index_of(*args)
        assert index is not None
        return replace(index, keys=[(pts, seek_to + 12800) for pts, seek_to in index.keys]), note

    monkeypatch.setattr(clip_video, "_read_index", astray)
    assert same(read(path, 2), right)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("flip", [False, True])
def test_rotation_and_mirroring_are_applied(tmp_path: Path, degrees: int, flip: bool) -> None:
    upright = Image.new("RGB", (48, 32), (30, 30, 200))
    upright.paste((220, 20, 20), (0, 0, 16, 16))
    shown = upright.rotate(degrees, expand=True)  # counterclockwise, as the display matrix is given
    if flip:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    rotate = {"degrees": degrees, "hflip": flip}
    path = write_clip(tmp_path / "a.mp4", times=TIMES[:3], rotate=rotate, pictures=[upright] * 3)
    (frame,) = read(path, 1).frames
    assert frame.size == shown.size
    assert np.abs(np.array(frame, int) - np.array(shown, int)).mean() < 12


def test_odd_sizes_deep_colour_and_transparency(tmp_path: Path) -> None:
    odd = read(write_clip(tmp_path / "odd.mp4", "mpeg4", size=(47, 33)), 3)
    assert {frame.size for frame in odd.frames} == {(47, 33)}
    deep = read(write_clip(tmp_path / "deep.mkv", pixels="yuv420p10le"), 3)
    for frame, number in zip(deep.frames, (6, 20, 33), strict=True):
        assert np.abs(np.array(frame, int) - np.array(picture(number), int)).mean() < 4
    clear = Image.new("RGBA", (48, 32), (0, 0, 0, 0))
    path = write_clip(tmp_path / "clear.mov", "png", times=TIMES[:2], pixels="rgba", pictures=[clear] * 2)
    assert read(path, 1).frames[0].getpixel((5, 5)) == (255, 255, 255)


def test_wide_pixels_are_shown_square(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "wide.mkv", times=TIMES[:3], shape=Fraction(4, 3))
    assert read(path, 1).frames[0].size == (64, 32)


def test_huge_frames_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "large.mp4", "mpeg4", times=TIMES[:1], size=(3840, 2160))
    width, height = read(path, 1).frames[0].size
    assert abs(width * height / clip_video.FRAME_PIXELS - 1) < 0.01 and abs(width / height - 16 / 9) < 0.01
    monkeypatch.setattr(clip_video, "FRAME_PIXELS", 960 * 540)
    assert read(path, 1).frames[0].size == (960, 540)


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4", "cut.avi", "cut.ts"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_a_truncated_file_gives_what_decodes(tmp_path: Path, name: str, share: float) -> None:
    settings: dict[str, dict[str, Any]] = {
        "cut.avi": {"codec": "mpeg4", "tick": Fraction(1, 25)},
        "cut.mp4": {"container": {"movflags": "faststart"}},
    }
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 99, (64, 96, 3), np.uint8)) for i in range(40)]
    path = write_clip(tmp_path / name, size=(96, 64), pictures=noise, **settings.get(name, {}))
    complete = watch(path)[2]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    few, every = read(path, 3), read(path, 100)
    assert len(few.frames) == 3 and 3 <= len(every.frames) < 38
    right = sum(np.array_equal(a, b) for a, b in zip(every.frames, complete, strict=False))
    assert right >= len(every.frames) - 4
    if name != "cut.ts":  # a transport stream announces nothing
        assert "s that it announces" in few.note and "s that it announces" in every.note


def test_damage_in_the_middle_costs_only_what_it_hit(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", "mjpeg", pixels="yuvj420p")
    complete = watch(path)[2]
    with av.open(str(path)) as file:
        places = [(packet.pos or 0, packet.size) for packet in file.demux(video=0)]
    data = bytearray(path.read_bytes())
    for start, size in places[10:13]:
        data[start + 10 : start + size] = bytes(size - 10)
    path.write_bytes(data)
    clip = read(path, 100)
    assert clip.note == "3 damaged packets left out"
    assert clip.seconds == pytest.approx([number / 25 for number in range(40) if not 10 <= number < 13])
    rest = complete[:10] + complete[13:]
    assert all(np.array_equal(a, b) for a, b in zip(clip.frames, rest, strict=True))


def test_a_wrong_duration_in_the_header_changes_nothing_but_the_note(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv")
    right = read(path, 5)
    data = path.read_bytes()
    for wrong in (1e6, 1.0):
        place = data.index(b"\x44\x89\x88") + 3  # the Duration element of Matroska, a float of 8 bytes
        path.write_bytes(data[:place] + struct.pack(">d", wrong) + data[place + 8 :])
        again = read(path, 5)
        assert same(again, right)
        assert ("1.60 s of the 1000.00 s" in again.note) == (wrong == 1e6)


def test_a_single_frame_and_a_sound_longer_than_the_pictures(tmp_path: Path) -> None:
    assert read(write_clip(tmp_path / "one.mp4", times=TIMES[:1]), 8).positions == (0.0,)
    path = tmp_path / "talk.mkv"
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 48, 32, "bgr0"
        sound: Any = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        for number in range(10):
            file.mux(video.encode(av.VideoFrame.from_image(picture(number))))
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
            frame.sample_rate = 8000
            file.mux(sound.encode(frame))
        file.mux([*video.encode(), *sound.encode()])
    clip = read(path, 4)
    assert clip.note == "" and clip.duration == pytest.approx(0.4)
    assert [np.array(frame)[0, 0, 0] for frame in clip.frames] == [20 + 5 * n for n in (1, 3, 6, 8)]


def test_what_is_not_a_video_is_refused_in_one_line(tmp_path: Path) -> None:
    refuses(b"hello world " * 50, "not a video", "hello")
    refuses(bytes(range(256)) * 20, "not a video")
    (tmp_path / "notes.txt").write_text("hello world " * 50)  # which FFmpeg would draw
    with pytest.raises(UserError, match=r"notes\.txt: not a video \(the file starts with .*: a text\)"):
        read(tmp_path / "notes.txt", 4)
    write_clip(tmp_path / "a.mp4")
    refuses((tmp_path / "a.mp4").read_bytes()[:2000], "not a video")  # the index of a plain MP4 is at its end
    with av.open(str(tmp_path / "sound.mka"), "w") as file:
        sound: Any = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        file.mux([*sound.encode(frame), *sound.encode()])
    refuses((tmp_path / "sound.mka").read_bytes(), "no video stream (found audio)")
    with av.open(str(tmp_path / "song.mp4"), "w") as file:
        sound = file.add_stream("aac", rate=8000, layout="mono")
        cover: Any = file.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 48, 32, "yuvj420p", Disposition.attached_pic
        frame.pts = None
        file.mux([*cover.encode(av.VideoFrame.from_image(picture(0))), *cover.encode(), *sound.encode(frame)])
        file.mux(sound.encode())
    refuses((tmp_path / "song.mp4").read_bytes(), "no video stream")


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.mp4", container={"movflags": "faststart"}).read_bytes()
    refuses(data[: data.index(b"mdat") + 4], "none of its frames can be decoded")


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    segment = write_clip(tmp_path / "segment.ts")
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n"
    playlist = tmp_path / "a.m3u8"
    playlist.write_text(f"{head}file://{segment}\n#EXT-X-ENDLIST\n")
    with playlist.open("rb") as opened, av.open(opened) as file:  # else the test would show nothing
        assert len(list(file.decode(video=0))) == 40
    with pytest.raises(UserError, match=r"a\.m3u8: not a video"):
        read(playlist, 4)


@pytest.mark.skipif(not (DATA / "grid").is_dir(), reason=f"no {DATA / 'grid'} (set GRAFT_DATA)")
def test_recorded_speech() -> None:
    for path in sorted((DATA / "grid" / "clips").glob("*.mp4"))[:1]:
        clip = read(path, 16)
        seconds, duration, frames = expected(watch(path), 16)
        assert clip.seconds == pytest.approx(seconds) and clip.duration == pytest.approx(duration, abs=1e-3)
        assert len(clip.frames) == 16 and clip.note == ""
        assert all(np.array_equal(a, b) for a, b in zip(clip.frames, frames, strict=True))
