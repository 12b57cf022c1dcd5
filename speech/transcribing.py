"""Recordings of any length -> timed text: cut at pauses, each piece transcribed or translated, silence left out.

A file is read block by block, so that hours of sound need the memory of some minutes. What is cut holds every sample of
speech exactly once: no word is lost or doubled at a seam (`split_at_pauses`).

Legend: S samples.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from speech.asr import answer_speech, prompt_of, speech_of
from speech.audio import read_blocks
from speech.transcript_rows import language_name
from speech.utterance import LONGEST_SECONDS, SpeechTask
from speech.voice_activity import VoiceActivity, split_at_pauses

BLOCK_SECONDS = 120.0
BEGINNING_SECONDS = 1.0
"""So much of a block's end waits for the next block: a word may begin there too softly to be noticed yet."""


@dataclass(frozen=True)
class Piece:
    """Speech between two pauses, `start` seconds into the recording."""

    start: float
    end: float
    waveform: Tensor


@dataclass(frozen=True)
class Segment:
    """What is said from `start` to `end` (seconds)."""

    start: float
    end: float
    text: str


def speech_pieces(
    blocks: Iterable[Tensor], *, rate: int, longest_seconds: float, rule: VoiceActivity | None = None
) -> Iterator[Piece]:
    """The speech of a stream of blocks [S] in pieces of at most `longest_seconds`, in order; none in silence.

    Raises:
        UserError: `longest_seconds` is below 1.
    """
    waiting_S, passed = torch.zeros(0), 0

    def cut(last: bool) -> Iterator[Piece]:
        nonlocal waiting_S, passed
        settled = len(waiting_S) - (0 if last else round(BEGINNING_SECONDS * rate))
        kept = max(0, settled)
        for start, end in split_at_pauses(waiting_S, rate=rate, longest_seconds=longest_seconds, rule=rule):
            if end > settled:  # it may go on in the next block
                kept = min(kept, start)
                break
            yield Piece((passed + start) / rate, (passed + end) / rate, waiting_S[start:end])
            kept = max(kept, end)
        waiting_S, passed = waiting_S[kept:], passed + kept

    for block_S in blocks:
        waiting_S = torch.cat([waiting_S, block_S])
        yield from cut(last=False)
    yield from cut(last=True)


def transcribe(
    model: MultimodalModel,
    source: str | Path | bytes,
    *,
    task: SpeechTask = "transcribe",
    language: str = "English",
    longest_seconds: float = 20.0,
    batch_size: int = 16,
    rule: VoiceActivity | None = None,
    **options: Any,
) -> Iterator[Segment]:
    """The segments of a recording as they are ready; none in silence, or where the model hears nothing.

    Args:
        language: of the text, by name or code ("German", "german", "de").
        longest_seconds: of a piece that the model hears at once; no longer than its encoder can (Whisper: 30 s).
        rule: what counts as speech.
        options: those of `generate`.

    Raises:
        UserError: the recording cannot be read, or the adapter has no speech.
    """
    if not 1 <= longest_seconds <= LONGEST_SECONDS:
        raise UserError(f"pieces of {longest_seconds} s; expected 1 to {LONGEST_SECONDS:.0f}")
    speech = speech_of(model)
    rate, longest_seconds = speech.rate, min(longest_seconds, speech.longest_seconds)
    blocks = read_blocks(source if isinstance(source, bytes) else Path(source), seconds=BLOCK_SECONDS, rate=rate)
    pieces = speech_pieces(blocks, rate=rate, longest_seconds=longest_seconds, rule=rule)
    name = language_name(language)
    prompt = prompt_of(task, name.title() if name.islower() else name)
    while some := list(islice(pieces, batch_size)):
        heard = [piece.waveform for piece in some]
        texts = answer_speech(model, [prompt] * len(some), heard, batch_size=batch_size, **options)
        for piece, text in zip(some, texts, strict=True):
            if text:
                yield Segment(piece.start, piece.end, text)
