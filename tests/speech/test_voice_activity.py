"""Voice activity: finds bursts in noise of any level, and cuts long recordings where nobody speaks."""

import csv
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from multimodal.errors import UserError
from speech.audio import read_audio
from speech.voice_activity import Segment, VoiceActivity, speech_segments, split_at_pauses

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
RATE = 16_000


def recording(parts: Sequence[tuple[float, float]], *, noise_db: float = -80.0, rate: int = RATE) -> torch.Tensor:
    """Parts of (seconds, level in decibels) of a warbling tone over white noise; a level of -inf is a pause."""
    pieces = []
    for seconds, level in parts:
        time = torch.arange(round(seconds * rate)) / rate
        pieces.append(10 ** (level / 20) * torch.sin(2 * math.pi * 200 * time + torch.sin(20 * time)) * 2**0.5)
    speech = torch.cat(pieces)
    return speech + 10 ** (noise_db / 20) * torch.randn(len(speech), generator=torch.Generator().manual_seed(0))


PAUSE = -math.inf


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("noise_db", [-100.0, -60.0, -40.0])
def test_bursts_are_found_where_they_are(rate: int, noise_db: float) -> None:
    wave = recording([(1, PAUSE), (0.6, -20), (1, PAUSE), (0.4, -15), (1, PAUSE)], noise_db=noise_db, rate=rate)
    segments = speech_segments(wave, rate=rate)
    hangover = VoiceActivity().hangover_seconds
    expected = [(1 - hangover, 1.6 + hangover), (2.6 - hangover, 3 + hangover)]
    found = [(start / rate, end / rate) for start, end in segments]
    assert len(found) == 2
    for pair, wanted in zip(found, expected, strict=True):
        assert pair == pytest.approx(wanted, abs=0.03)


@pytest.mark.parametrize("noise_db", [-math.inf, -90.0, -60.0, -40.0])
def test_silence_and_steady_noise_are_no_speech(noise_db: float) -> None:
    wave = recording([(5, PAUSE)], noise_db=noise_db)
    assert speech_segments(wave, rate=RATE) == []
    assert speech_segments(wave + 0.3, rate=RATE) == []  # the offset of a recorder
    assert split_at_pauses(wave, rate=RATE, longest_seconds=2) == []


def test_the_floor_follows_the_noise() -> None:
    rule = VoiceActivity(floor_seconds=2.0)
    loud = recording([(5, PAUSE), (0.5, -10), (5, PAUSE)], noise_db=-40)
    quiet = recording([(5, PAUSE), (0.5, -50), (5, PAUSE)], noise_db=-90)
    segments = speech_segments(torch.cat([quiet, loud]), rate=RATE, rule=rule)
    middles = [(s.start + s.end) / 2 / RATE for s in segments]
    assert any(abs(m - 5.25) < 0.1 for m in middles)  # 10 dB below the noise of the second half
    assert any(abs(m - 15.75) < 0.1 for m in middles)
    assert all(end <= 13 * RATE or start >= 15 * RATE for start, end in segments)  # its noise alone is none


def test_a_clip_without_a_pause_is_speech_and_a_click_is_none() -> None:
    clip = recording([(0.4, -20)])
    assert speech_segments(clip, rate=RATE) == [Segment(0, len(clip))]
    click = recording([(1, PAUSE), (0.01, -10), (1, PAUSE)])
    assert speech_segments(click, rate=RATE) == []


@pytest.mark.parametrize("samples", [1, 100, 161])
def test_the_shortest_waveforms(samples: int) -> None:
    assert speech_segments(torch.zeros(samples), rate=RATE) == []
    assert all(end <= samples for _, end in split_at_pauses(torch.randn(samples), rate=RATE, longest_seconds=1))


def lengths_ok(pieces: list[Segment], longest: float) -> bool:
    apart = all(a.end <= b.start for a, b in itertools.pairwise(pieces))
    return apart and all(0 < end - start <= longest * RATE for start, end in pieces)


@pytest.mark.parametrize("longest", [1.0, 2.5, 6.0, 30.0, 600.0])
def test_pieces_hold_all_speech_once(longest: float) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = (torch.rand(60, generator=generator) * 2.5 + 0.05).tolist()
    wave = recording([(size, -20 if i % 2 else PAUSE) for i, size in enumerate(sizes)])
    spoken, held = torch.zeros(len(wave)), torch.zeros(len(wave))
    for start, end in speech_segments(wave, rate=RATE):
        spoken[start:end] += 1
    pieces = split_at_pauses(wave, rate=RATE, longest_seconds=longest)
    for start, end in pieces:
        held[start:end] += 1
    assert lengths_ok(pieces, longest)
    assert held.max() == 1 and bool((held[spoken > 0] == 1).all())
    bounds = {bound for segment in speech_segments(wave, rate=RATE) for bound in segment}
    assert pieces[0].start in bounds and pieces[-1].end in bounds
    if longest >= 6:
        assert all(bound in bounds for piece in pieces for bound in piece)  # no speech is cut where there are pauses


def test_the_longest_late_pause_is_taken() -> None:
    wave = recording(
        [(2, -20), (1.5, PAUSE), (5, -20), (0.7, PAUSE), (1, -20), (1, PAUSE), (1, -20), (0.6, PAUSE), (3, -20)]
    )
    first, second = split_at_pauses(wave, rate=RATE, longest_seconds=12)
    assert first.end / RATE == pytest.approx(2 + 1.5 + 5 + 0.7 + 1 + 0.2, abs=0.03)
    assert second.start / RATE == pytest.approx(2 + 1.5 + 5 + 0.7 + 1 + 1 - 0.2, abs=0.03)


def test_speech_without_pauses_is_cut_in_its_quietest_moment_without_a_gap() -> None:
    wave = recording([(7, -20), (0.24, -45), (8, -20)])
    first, second = split_at_pauses(wave, rate=RATE, longest_seconds=10)
    assert first == (0, second.start) and second.end == len(wave)
    assert first.end / RATE == pytest.approx(7.12, abs=0.03)
    endless = split_at_pauses(recording([(30, -20)]), rate=RATE, longest_seconds=4)
    assert lengths_ok(endless, 4)
    assert endless[0].start == 0 and endless[-1].end == 30 * RATE
    assert all(a.end == b.start for a, b in itertools.pairwise(endless))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="limit of 1 s or more"):
        split_at_pauses(torch.zeros(9), rate=RATE, longest_seconds=0.5)
    with pytest.raises(UserError, match="no negative"):
        VoiceActivity(hangover_seconds=-1)


@pytest.mark.skipif(not (DATA / "grid").is_dir(), reason=f"no {DATA / 'grid'} (set GRAFT_DATA)")
def test_real_sentences_are_kept_and_their_silence_is_not() -> None:
    with (DATA / "grid" / "word_times.tsv").open() as file:
        words = [row for row in csv.DictReader(file, delimiter="\t") if row["word"] not in ("sil", "sp")]
    covered, kept = [], []
    sentences = [(clip, list(rows)) for clip, rows in itertools.groupby(words, key=lambda row: row["id"])]
    for clip, rows in sentences[::80]:
        waveform = read_audio(DATA / "grid" / "clips" / f"{clip}.mp4")
        active = torch.zeros(len(waveform))
        for start, end in speech_segments(waveform, rate=RATE):
            active[start:end] = 1
        begin, stop = (round(float(time) * RATE) for time in (rows[0]["start_s"], rows[-1]["end_s"]))
        covered.append(float(active[begin:stop].mean()))
        kept.append(float(active.mean()))
    assert min(covered) > 0.9 and sum(covered) / len(covered) > 0.97
    assert sum(kept) / len(kept) < 0.8
