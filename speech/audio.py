"""Any sound a person may hand over -> a mono float32 waveform at the rate wanted, or a `UserError` of one line.

WAV, FLAC, Ogg (Vorbis, Opus), MP3, AIFF and the like by libsndfile; M4A, WebM and the sound track of a video by FFmpeg.
Files are decoded and resampled block by block, so that hours of sound need the memory of one block. Unusual sound is
handled, not refused: one sample, silence, clipping, 96 kHz in eight channels (their mean is taken). Broken sound is
refused. What does not say how long it is (MP3, Ogg, raw AAC) ends where it ends; a file that says so must be complete.

Legend: S samples, N samples of all channels of one decoded chunk, C channels.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from multimodal.errors import UserError
from multimodal.files import open_container, open_file
from speech.resampling import resample, resample_blocks

SAMPLE_RATE = 16_000
"""Samples a second that the speech modules work at."""
LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
MAX_CHANNELS = 64
AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aiff", ".webm", ".mp4", ".mpg", ".mkv", ".mov",
    ".avi",
)  # fmt: skip
"""Files of a folder that are taken for sound."""
EXPECTED = "expected sound (WAV, FLAC, Ogg, MP3, M4A or a video with a sound track)"

CHUNK = 1 << 16
"""Samples a channel that are decoded at a time."""
SLACK_BYTES, SLACK_SECONDS = 1024, 0.25
"""A file may be this much shorter than it says: headers round, encoders pad."""
STREAMED_BYTES = 0x7FFF0000
"""From here on a size in a header means that the writer did not know it (a pipe)."""

AudioFile = str | Path | bytes
AudioSource = AudioFile | np.ndarray | Tensor


def read_audio(
    source: AudioSource, *, rate: int = SAMPLE_RATE, source_rate: int | None = None, name: str | None = None
) -> Tensor:
    """Read a whole sound as a waveform [S], mono float32; full scale is -1..1.

    Args:
        source: a file, its bytes, or samples: a tensor ([S] or [C, S]) or a numpy array (the same or [S, C]: the
            shorter side is the channels). Integers are scaled by the range of their type, floats taken as they are.
        rate: samples a second wanted.
        source_rate: samples a second of an array or tensor; None: `rate`. A file says it itself.
        name: what error messages call the sound; a file has its path.

    Raises:
        UserError: missing, empty, not sound, no sound track, truncated, NaN or infinite, or of an impossible rate.

    Example:
        >>> read_audio(np.zeros((48_000, 2), np.int16), source_rate=48_000).shape
        torch.Size([16000])
    """
    if isinstance(source, np.ndarray | Tensor):
        label = name or "the samples given"
        channels_CS = _channels_first(source, label)
        source_rate = _checked_rate(rate if source_rate is None else source_rate, label)
        (mono_S,) = _checked([_mono(channels_CS)], label)
        return resample(mono_S, source_rate=source_rate, rate=rate)
    return torch.cat(list(read_blocks(source, rate=rate, name=name)))


def read_blocks(
    source: AudioFile, *, seconds: float = 30.0, rate: int = SAMPLE_RATE, name: str | None = None
) -> Iterator[Tensor]:
    """Read a file of any length as blocks [S] of `seconds` each, the last one shorter; joined they are `read_audio`.

    Raises:
        UserError: as `read_audio`, when the first block is asked for; for damage farther in, when it is reached.
    """
    with _opened(source, name) as (file, label):
        source_rate, chunks = _decode(file, label)
        blocks = resample_blocks(_checked(chunks, label), source_rate=_checked_rate(source_rate, label), rate=rate)
        yield from _regrouped(blocks, max(1, round(seconds * rate)))


@contextlib.contextmanager
def _opened(source: AudioFile, name: str | None) -> Iterator[tuple[BinaryIO, str]]:
    label = name or ("the sound's bytes" if isinstance(source, bytes) else str(source))
    with io.BytesIO(source) if isinstance(source, bytes) else open_file(Path(source), expected=EXPECTED) as file:
        if not file.read(1):
            raise UserError(f"{label}: empty (0 bytes); {EXPECTED}")
        file.seek(0)
        yield file, label


def _decode(file: BinaryIO, name: str) -> tuple[int, Iterator[Tensor]]:
    """Sampling rate and mono chunks of a file."""
    import soundfile

    try:
        sound = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        if "not recognised" in error.error_string:
            file.seek(0)
            return _decode_by_ffmpeg(file, name)
        raise UserError(f"{name}: broken sound file ({error.error_string}); {EXPECTED}") from error
    except Exception as error:  # a headerless file by its name (.raw), and whatever else a parser runs into
        raise UserError(f"{name}: not sound ({error}); {EXPECTED}") from error
    return sound.samplerate, _read_chunks(sound, name)


def _read_chunks(sound: Any, name: str) -> Iterator[Tensor]:
    import soundfile

    # libsndfile corrects a size that goes beyond the end of the file, and notes it in its log.
    for said, found in re.findall(r"(\d+) \(should be (\d+)\)", sound.extra_info):
        if int(found) + SLACK_BYTES < int(said) < STREAMED_BYTES:
            raise UserError(f"{name}: truncated ({found} of {said} bytes); expected a complete sound file")
    with sound:
        while True:
            try:
                chunk_NC = sound.read(CHUNK, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                message = f"{name}: truncated or broken ({error.error_string}); expected a complete sound file"
                raise UserError(message) from error
            if not len(chunk_NC):
                return
            yield _mono(torch.from_numpy(chunk_NC).T)


def _decode_by_ffmpeg(file: BinaryIO, name: str) -> tuple[int, Iterator[Tensor]]:
    try:
        container = open_container(file)
    except Exception as error:
        raise UserError(f"{name}: not sound, or broken ({_sentence(error)}); {EXPECTED}") from error
    if not container.streams.audio:
        found = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise UserError(f"{name}: no sound track (found {found}); {EXPECTED}")
    frames = _ffmpeg_frames(container, name)
    first = next(frames, None)
    if first is None:
        raise UserError(f"{name}: holds no samples; {EXPECTED}")
    rate = first.sample_rate  # of the decoder: the header of HE-AAC states half of it
    return rate, _ffmpeg_chunks(itertools.chain([first], frames), rate, name)


def _ffmpeg_frames(container: Any, name: str) -> Iterator[Any]:
    """Decoded frames of the first sound track; checks that it is as long as it says."""
    stream, indexed = container.streams.audio[0], container.format.name.startswith(("mov", "matroska"))
    said, end = 0.0, 0.0  # other formats' durations are guesses from the bit rate
    if indexed and stream.duration:
        said = float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    elif indexed and container.duration and len(container.streams) == 1:
        said = container.duration / 1e6
    with container:
        try:
            for frame in container.decode(stream):
                end = end if frame.time is None else frame.time + frame.samples / frame.sample_rate
                yield frame
        except Exception as error:
            message = f"{name}: truncated or broken ({_sentence(error)}); expected a complete sound track"
            raise UserError(message) from error
    if end + SLACK_SECONDS < said:
        raise UserError(f"{name}: truncated ({end:.1f} of {said:.1f} s); expected a complete sound track")


def _ffmpeg_chunks(frames: Iterable[Any], rate: int, name: str) -> Iterator[Tensor]:
    """Mono chunks of about `CHUNK` samples: frames are short, and each step of the resampler has its price."""
    waiting: list[Tensor] = []
    for frame in frames:
        if frame.sample_rate != rate:
            raise UserError(f"{name}: changes from {rate} to {frame.sample_rate} Hz; expected one sampling rate")
        samples = torch.from_numpy(frame.to_ndarray())
        waiting.append(_mono(samples if frame.format.is_planar else samples.view(frame.samples, -1).T))
        if sum(map(len, waiting)) >= CHUNK:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def _channels_first(samples: np.ndarray | Tensor, name: str) -> Tensor:
    """Samples [S] or in either order of two axes -> [C, S]."""
    found = f"{name}: shape {tuple(samples.shape)} of {samples.dtype}"
    if isinstance(samples, np.ndarray):
        if samples.ndim == 2 and samples.shape[1] < samples.shape[0]:
            samples = samples.T
        try:
            samples = torch.from_numpy(samples.astype(samples.dtype.newbyteorder("=")))
        except TypeError:
            raise UserError(f"{found}; expected numbers, S or C x S") from None
    samples = samples.detach().cpu()
    channels_CS = samples.unsqueeze(0) if samples.ndim == 1 else samples
    wrong_kind = samples.is_complex() or samples.dtype == torch.bool
    if wrong_kind or channels_CS.ndim != 2 or not channels_CS.numel() or len(channels_CS) > MAX_CHANNELS:
        raise UserError(f"{found}; expected numbers, S or C x S with at most {MAX_CHANNELS} channels")
    return channels_CS


def _mono(samples_CS: Tensor) -> Tensor:
    """The mean of the channels, integers scaled to -1..1 by the range of their type."""
    if samples_CS.is_floating_point():
        return samples_CS.float().mean(0)
    range_ = torch.iinfo(samples_CS.dtype)
    half = (range_.max - range_.min + 1) / 2
    middle = 0 if range_.min else half  # unsigned sound rests at half of its range
    return ((samples_CS.double() - middle) / half).float().mean(0)


def _checked_rate(rate: int, name: str) -> int:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise UserError(f"{name}: says {rate} samples a second; expected {LOWEST_RATE} to {HIGHEST_RATE}")
    return int(rate)


def _checked(chunks: Iterable[Tensor], name: str) -> Iterator[Tensor]:
    """The same chunks; raises where a sample is no number, and at the end where there was none."""
    total = 0
    for chunk_S in chunks:
        if not bool(torch.isfinite(chunk_S).all()):
            at = total + int((~torch.isfinite(chunk_S)).nonzero()[0])
            raise UserError(f"{name}: sample {at} is NaN or infinite; expected finite samples")
        total += len(chunk_S)
        yield chunk_S
    if not total:
        raise UserError(f"{name}: holds no samples; {EXPECTED}")


def _regrouped(blocks: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same samples in blocks of exactly `size`, the last one shorter."""
    waiting, count = [], 0
    for block_S in blocks:
        waiting.append(block_S)
        count += len(block_S)
        if count >= size:
            whole, rest_S = torch.cat(waiting).split([count - count % size, count % size])
            yield from whole.split(size)
            waiting, count = [rest_S], len(rest_S)
    if count:
        yield torch.cat(waiting)


def _sentence(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
