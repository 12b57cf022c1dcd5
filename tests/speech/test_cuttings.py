"""Pieces of sentences: what is cut out is what the times say."""

from pathlib import Path

import pytest
import torch

from multimodal.data.word_times import MARGIN_SECONDS
from multimodal.errors import UserError
from speech.cuttings import cuttings
from speech.utterance import CutSound, FileSound, SoundMemory, Utterance
from tests.speech.made_speech import save, tone

TIMES = {"a": [("one", 0.2, 0.5), ("two", 0.5, 0.7), ("three", 0.7, 0.9)]}


def test_a_cut_is_a_part_of_the_waveform(tmp_path: Path) -> None:
    whole = FileSound(save(tmp_path / "a.wav", tone(3, seconds=1), rate=16_000))
    cut = CutSound(whole, 0.25, 0.75)
    assert cut.seconds == 0.5
    part_S = whole.waveform(16_000)[4_000:12_000]
    memory = SoundMemory(rate=16_000, megabytes=1)
    assert torch.equal(cut.waveform(16_000), part_S) and torch.equal(memory(cut), part_S)
    whole.path.unlink()
    assert torch.equal(memory(cut), part_S)


def test_a_cut_beyond_the_recording_is_refused(tmp_path: Path) -> None:
    whole = FileSound(save(tmp_path / "a.wav", tone(3, seconds=1, rate=16_000), rate=16_000))
    assert len(CutSound(whole, 0.5, 3.0).waveform(16_000)) == 8_000
    for start, end in ((1.5, 2.0), (0.6, 0.2)):
        with pytest.raises(UserError, match=rf"no sound from {start:.2f} to {end:.2f} s; expected a part of its 1\.00"):
            CutSound(whole, start, end).waveform(16_000)


def test_pieces_are_words_in_a_row_with_their_sound(tmp_path: Path) -> None:
    whole = Utterance(sound=FileSound(tmp_path / "a.wav"), text="one two three", id="clips/a.wav", speaker="ann")
    made = cuttings([whole], TIMES, count=60, seed=0)
    assert len(made) == 60 and made == cuttings([whole], TIMES, count=60, seed=0)
    assert {u.text for u in made} == {"one", "two", "three", "one two", "two three", "one two three"}
    for piece in made:
        words = piece.text.split()
        first, last = (next(t for t in TIMES["a"] if t[0] == word) for word in (words[0], words[-1]))
        assert isinstance(piece.sound, CutSound) and piece.speaker == "ann"
        assert (piece.sound.start, piece.sound.end) == pytest.approx(
            (first[1] - MARGIN_SECONDS, last[2] + MARGIN_SECONDS)
        )


def test_without_times_there_is_nothing_to_cut(tmp_path: Path) -> None:
    whole = Utterance(sound=FileSound(tmp_path / "b.wav"), text="four", id="b")
    with pytest.raises(UserError, match="none of 1 recordings has word times"):
        cuttings([whole], TIMES, count=1, seed=0)
