"""Long recordings: every bit of speech once, at its time, whatever the blocks; nothing in silence."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from speech import transcribing
from speech.subtitles import write_segments
from speech.transcribing import Segment, speech_pieces, transcribe
from tests.speech.made_speech import save
from tests.speech.test_speech_modality import with_speech
from tests.tiny_models import tiny_model

RATE = 16_000


def talk(bursts: list[tuple[float, float]], *, seconds: float) -> Tensor:
    """Silence with bursts of noise [S] from `start` to `end`, in seconds."""
    waveform_S = torch.zeros(round(seconds * RATE))
    generator = torch.Generator().manual_seed(0)
    for start, end in bursts:
        part = slice(round(start * RATE), round(end * RATE))
        waveform_S[part] = 0.1 * torch.randn(part.stop - part.start, generator=generator)
    return waveform_S


BURSTS = [(0.5, 2.0), (2.5, 3.0), (5.0, 9.5), (10.1, 10.4), (16.0, 17.0)]


@pytest.mark.parametrize("block_seconds", [0.7, 3.0, 100.0])
@pytest.mark.parametrize("longest", [1.5, 4.0, 30.0])
def test_no_speech_is_lost_or_doubled_at_the_seams(block_seconds: float, longest: float) -> None:
    waveform_S = talk(BURSTS, seconds=20)
    blocks = waveform_S.split(round(block_seconds * RATE))
    pieces = list(speech_pieces(blocks, rate=RATE, longest_seconds=longest))
    covered = torch.zeros(len(waveform_S), dtype=torch.long)
    for piece in pieces:
        first = round(piece.start * RATE)
        assert torch.equal(piece.waveform, waveform_S[first : first + len(piece.waveform)])
        assert len(piece.waveform) <= longest * RATE and piece.end == pytest.approx(
            first / RATE + len(piece.waveform) / RATE
        )
        covered[first : first + len(piece.waveform)] += 1
    assert covered.max() == 1 and bool((covered[waveform_S != 0] == 1).all())
    assert [piece.start for piece in pieces] == sorted(piece.start for piece in pieces)


def test_silence_has_no_pieces() -> None:
    assert list(speech_pieces([torch.zeros(RATE)] * 5, rate=RATE, longest_seconds=10)) == []
    assert list(speech_pieces([], rate=RATE, longest_seconds=10)) == []


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    return with_speech()


def test_a_recording_becomes_timed_text_and_silence_becomes_nothing(model: MultimodalModel, tmp_path: Path) -> None:
    spoken = save(tmp_path / "talk.wav", talk(BURSTS, seconds=20), rate=RATE)
    segments = list(transcribe(model, spoken, longest_seconds=4, batch_size=2, max_new_tokens=4))
    alone = list(transcribe(model, spoken.read_bytes(), longest_seconds=4, batch_size=1, max_new_tokens=4))
    assert segments == alone and segments and all(segment.text and segment.start < segment.end for segment in segments)
    quiet = save(tmp_path / "quiet.wav", torch.zeros(3 * RATE), rate=RATE)
    assert list(transcribe(model, quiet)) == []


def test_a_language_is_asked_for_by_its_name(
    model: MultimodalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(_: MultimodalModel, prompts: list[str], heard: list[Tensor], **options: object) -> list[str]:
        asked.append(prompts[0])
        return [""] * len(heard)

    monkeypatch.setattr(transcribing, "answer_speech", answer)
    spoken = save(tmp_path / "talk.wav", talk(BURSTS[:1], seconds=3), rate=RATE)
    for said in ("de", "de-DE", "german", "German", "Low German"):
        list(transcribe(model, spoken, language=said))
    assert asked == [*["Repeat after me in German:"] * 4, "Repeat after me in Low German:"]


def test_what_cannot_be_transcribed_is_refused(model: MultimodalModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(transcribe(model, tmp_path / "none.wav"))
    with pytest.raises(UserError, match=r"pieces of 0\.5 s"):
        list(transcribe(model, b"", longest_seconds=0.5))
    with pytest.raises(UserError, match="has no speech"):
        list(transcribe(tiny_model(), b""))


SEGMENTS = [Segment(0.5, 1.25, "one  two"), Segment(3600 + 61.0004, 3661.9996, "three --> four")]


def test_subtitles_have_the_times_of_their_formats() -> None:
    assert write_segments("a.wav", SEGMENTS, "srt") == (
        "1\n00:00:00,500 --> 00:00:01,250\none two\n\n2\n01:01:01,000 --> 01:01:02,000\nthree -> four\n"
    )
    assert write_segments("a.wav", SEGMENTS[:1], "vtt") == "WEBVTT\n\n00:00:00.500 --> 00:00:01.250\none two\n"
    assert write_segments("a.wav", [], "srt") == "" and write_segments("a.wav", [], "vtt") == "WEBVTT\n"
    assert '"text": "one  two", "segments": [{"start": 0.5' in write_segments("a.wav", SEGMENTS[:1], "jsonl")
