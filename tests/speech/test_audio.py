"""Every kind of sound that people have: heard as it is, or refused in one line that names it."""

import io
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch

from multimodal.errors import UserError
from speech import audio
from speech.audio import read_audio, read_blocks
from speech.resampling import resample

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def tone(seconds: float = 0.5, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def by_ffmpeg(
    path: Path, codec: str, *, rate: int = 44_100, sound: bool = True, picture: bool = False, **options: str
) -> Path:
    """A stereo tone of 440 Hz, 1 s, and if wanted five black pictures; options are the container's."""
    with av.open(path, "w", options={"movflags": "faststart"} | options) as file:
        # The streams are declared before anything is written.
        video = file.add_stream("mpeg4", rate=5, width=32, height=32) if picture else None
        track: Any = file.add_stream(codec, rate=rate) if sound else None
        if video:
            for _ in range(5):
                file.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            file.mux(video.encode(None))
        if track:
            samples = np.stack([tone(1.0, rate)] * 2)
            for start in range(0, rate, 960):
                part = np.ascontiguousarray(samples[:, start : start + 960])
                frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
                frame.sample_rate, frame.pts = rate, start
                file.mux(track.encode(frame))
            file.mux(track.encode(None))
    return path


def loudest_hertz(waveform: torch.Tensor, rate: int = 16_000) -> float:
    return float(torch.fft.rfft(waveform).abs().argmax()) * rate / len(waveform)


def refused(source: audio.AudioSource, match: str, **arguments: object) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read_audio(source, **arguments)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(caught.value)
    if isinstance(source, Path):
        assert str(source) in str(caught.value)


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 8e-3),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_32", 1e-6),
        ("WAV", "FLOAT", 0),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
    ],
)
def test_uncompressed_files_give_their_samples(format: str, subtype: str, tolerance: float) -> None:
    waveform = read_audio(encoded(tone(), 16_000, format, subtype))
    assert waveform.dtype == torch.float32 and waveform.shape == (8_000,)
    torch.testing.assert_close(waveform, torch.from_numpy(tone()), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("format", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_compressed_files_sound_the_same(format: str, subtype: str, rate: int, tmp_path: Path) -> None:
    path = tmp_path / f"tone.{format.lower()}"
    path.write_bytes(encoded(tone(1.0, rate), rate, format, subtype))
    waveform = read_audio(path)
    assert abs(len(waveform) - 16_000) < 1_600
    assert loudest_hertz(waveform) == pytest.approx(440, abs=2)
    assert waveform.square().mean().sqrt() == pytest.approx(0.5 / 2**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("name", "codec", "picture"),
    [
        ("a.m4a", "aac", False),
        ("a.mp4", "aac", True),
        ("a.mkv", "aac", True),
        ("a.webm", "libopus", False),
        ("a.aac", "aac", False),
        ("a.avi", "pcm_s16le", True),
    ],
)
def test_sound_in_containers_and_videos(name: str, codec: str, picture: bool, tmp_path: Path) -> None:
    rate = 48_000 if codec == "libopus" else 44_100
    waveform = read_audio(by_ffmpeg(tmp_path / name, codec, rate=rate, picture=picture))
    assert abs(len(waveform) - 16_000) < 1_600
    assert loudest_hertz(waveform) == pytest.approx(440, abs=2)
    assert waveform.square().mean().sqrt() == pytest.approx(0.5 / 2**0.5, rel=0.1)


def test_channels_are_averaged_and_any_rate_is_resampled() -> None:
    channels = np.stack([tone(0.25, 96_000, 100 * (i + 1)) for i in range(8)], axis=1)
    waveform = read_audio(encoded(channels, 96_000, "WAV", "FLOAT"))
    expected = resample(torch.from_numpy(channels.mean(1)), source_rate=96_000, rate=16_000)
    torch.testing.assert_close(waveform, expected, atol=1e-6, rtol=0)
    assert read_audio(encoded(tone(), 16_000), rate=8_000).shape == (4_000,)


@pytest.mark.parametrize("samples", [1, 2, 159, 16_001])
def test_short_silent_and_clipped_sound_is_legal(samples: int) -> None:
    clipped = np.where(np.arange(samples) % 7 < 3, 1.0, -1.0)
    assert read_audio(encoded(np.zeros(samples), 16_000)).shape == (samples,)
    assert read_audio(encoded(clipped, 16_000, "WAV", "FLOAT")).abs().min() == 1
    assert len(read_audio(encoded(clipped, 48_000))) == -(-samples // 3)


@pytest.mark.parametrize("seconds", [0.1, 0.33, 1.0, 5.0, 100.0])
@pytest.mark.parametrize(("rate", "format"), [(44_100, "FLAC"), (8_000, "WAV"), (16_000, "WAV")])
def test_blocks_joined_equal_the_whole(seconds: float, rate: int, format: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, size=(round(4.7 * rate), 2))
    data = encoded(noise, rate, format, "PCM_16")
    blocks = list(read_blocks(data, seconds=seconds))
    assert all(len(block) == round(seconds * 16_000) for block in blocks[:-1]) and len(blocks[-1]) > 0
    assert torch.equal(torch.cat(blocks), read_audio(data))
    mono = torch.from_numpy(soundfile.read(io.BytesIO(data), dtype="float32")[0].mean(1))
    torch.testing.assert_close(
        torch.cat(blocks), resample(mono, source_rate=rate, rate=16_000), atol=1e-6, rtol=0
    )  # no seams where the file was decoded in chunks


def test_a_long_file_needs_the_memory_of_a_block(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    second = (tone(1.0, 44_100) * 32767).astype(np.int16)
    with soundfile.SoundFile(path, "w", 44_100, 2, format="WAV") as file:
        for _ in range(120):
            file.write(np.stack([second, second], axis=1))
    tracemalloc.start()  # numpy's memory, into which the file is decoded
    length = largest = 0
    for block in read_blocks(path, seconds=1.0):
        length, largest = length + len(block), max(largest, block.untyped_storage().nbytes())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert length == 120 * 16_000
    assert peak < 8_000_000 and largest < 1_000_000  # the whole is 42 MB as decoded, 8 MB as waveform


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "float16", "float32", "float64"])
def test_arrays_and_tensors_of_every_type(dtype: str) -> None:
    kind = np.dtype(dtype)
    full = 1.0
    if kind.kind in "iu":
        half = 2 ** (8 * kind.itemsize - 1)
        values = np.round(tone().astype(np.float64) * half) + (half if kind.kind == "u" else 0)
        full = half
    else:
        values = tone()
    array = values.astype(kind)
    for source in (array, torch.from_numpy(array), np.stack([array, array], 1), torch.from_numpy(array)[None]):
        torch.testing.assert_close(read_audio(source), torch.from_numpy(tone()), atol=2e-3 + 1 / full % 1, rtol=0)


def test_arrays_in_either_order_and_at_their_rate() -> None:
    stereo = np.stack([tone(), -tone()], axis=1)
    assert read_audio(stereo).abs().max() == 0 and read_audio(stereo.T).abs().max() == 0
    assert read_audio(torch.ones(8, 1)).shape == (1,)
    assert read_audio(tone(0.5, 48_000), source_rate=48_000).shape == (8_000,)
    assert torch.equal(read_audio(tone().astype(">f4")), read_audio(tone()))
    assert torch.equal(read_audio(tone()[::-1]), read_audio(tone()).flip(0))


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (3, 4, 5), (70, 80)])
def test_arrays_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    refused(np.zeros(shape, np.float32), "shape")
    refused(torch.zeros(shape), "shape")


def test_arrays_of_no_sound_are_refused() -> None:
    refused(np.zeros(4, complex), "complex")
    refused(np.zeros(4, bool), "bool")
    refused(np.array(["a", "b"]), "shape")
    refused(tone(), "0 samples a second", source_rate=0)
    refused(tone(), "clip 7: says 10000000 samples", source_rate=10_000_000, name="clip 7")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(bad: float, tmp_path: Path) -> None:
    samples = np.zeros((70_000, 2), np.float32)
    samples[66_000, 1] = bad
    path = tmp_path / "bad.wav"
    path.write_bytes(encoded(samples, 16_000, "WAV", "FLOAT"))
    refused(path, "sample 66000 is NaN or infinite")
    refused(samples, "sample 66000")


def test_files_that_are_no_sound_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.wav", "no such file")
    refused(tmp_path, "folder")
    for name, content, match in [
        ("empty.wav", b"", "empty"),
        ("text.wav", b"hello world\n" * 99, "not sound"),
        ("zeros.mp3", bytes(5_000), "not sound"),
        ("random.m4a", np.random.default_rng(0).bytes(5_000), "not sound"),
        ("headless.raw", bytes(5_000), "not sound"),
        ("header.wav", encoded(np.zeros(0), 16_000), "no samples"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        refused(path, match)
    refused(by_ffmpeg(tmp_path / "mute.mp4", "aac", sound=False, picture=True), r"no sound track \(found video\)")


def test_a_playlist_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(encoded(tone(), 16_000))
    playlist = tmp_path / "list.txt"
    playlist.write_text("ffconcat version 1.0\nfile 'secret.wav'\n")
    refused(playlist, "not sound")


@pytest.mark.parametrize(
    ("format", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("AIFF", "PCM_16"), ("FLAC", None)]
)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files_are_refused(format: str, subtype: str | None, share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)
    data = encoded(noise, 16_000, format, subtype)
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "truncated")


@pytest.mark.parametrize("name", ["a.m4a", "a.mkv"])
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_truncated_containers_are_refused(name: str, share: float, tmp_path: Path) -> None:
    path = by_ffmpeg(tmp_path / name, "aac")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "truncated|not sound, or broken")


@pytest.mark.parametrize("rate", [0, 1, 999_999, 2**31, 2**32 - 1])
def test_a_header_with_an_impossible_rate_is_refused(rate: int, tmp_path: Path) -> None:
    data = bytearray(encoded(tone(), 16_000))
    at = data.index(b"fmt ") + 12
    data[at : at + 4] = struct.pack("<I", rate)
    path = tmp_path / "lies.wav"
    path.write_bytes(data)
    refused(path, "samples a second|broken sound file")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFFF00])
def test_a_header_written_before_the_length_was_known_is_legal(size: int) -> None:
    data = bytearray(encoded(tone(), 16_000))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", size)
    assert read_audio(bytes(data)).shape == (8_000,)


@pytest.mark.skipif(not (DATA / "fsdd").is_dir(), reason=f"no {DATA / 'fsdd'} (set GRAFT_DATA)")
def test_real_digits() -> None:
    waveform = read_audio(sorted((DATA / "fsdd" / "recordings").glob("*.flac"))[0])
    assert 1_600 < len(waveform) < 32_000 and 0.05 < waveform.abs().max() <= 1.1


@pytest.mark.skipif(not (DATA / "grid").is_dir(), reason=f"no {DATA / 'grid'} (set GRAFT_DATA)")
def test_the_sound_of_real_videos() -> None:
    waveform = read_audio(sorted((DATA / "grid" / "clips").glob("*.mp4"))[0])
    assert abs(len(waveform) - 48_000) < 1_600 and waveform.abs().max() > 0.02
