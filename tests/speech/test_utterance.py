"""Waveforms on demand: cropped, refused or skipped, and always the same for the same generator."""

import random
from pathlib import Path

import av
import pytest
import torch

from multimodal.errors import UserError
from speech.augment import Augment
from speech.utterance import (
    LONGEST_SECONDS,
    BytesSound,
    FileSound,
    JoinedSounds,
    Reply,
    SoundMemory,
    Utterance,
    Waveforms,
)
from tests.speech.made_speech import save, tone
from tests.speech.test_audio import by_ffmpeg


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> FileSound:
    return FileSound(save(tmp_path_factory.mktemp("sounds") / "a.wav", tone(3, seconds=0.5)))


def test_the_header_says_about_how_long_it_is(sound: FileSound) -> None:
    assert sound.seconds == pytest.approx(0.5) and len(sound.waveform(16_000)) == 8_000
    joined = JoinedSounds((sound, sound), (0.25,))
    assert joined.seconds == pytest.approx(1.25)
    waveform_S = joined.waveform(16_000)
    assert len(waveform_S) == 20_000 and not waveform_S[8_000:12_000].any() and waveform_S[12_001:].any()


def test_a_recording_without_a_length_in_its_header_is_as_long_as_its_packets(tmp_path: Path) -> None:
    path = by_ffmpeg(tmp_path / "live.mkv", "aac", live="1")
    with av.open(path) as container:
        assert container.duration is None
    for sound in (FileSound(path), BytesSound(path.read_bytes(), "live")):
        assert sound.seconds == pytest.approx(1.0, abs=0.1)
    assert FileSound(by_ffmpeg(tmp_path / "silent.mkv", "aac", sound=False, picture=True, live="1")).seconds == 0


def test_a_sound_that_is_kept_is_not_read_again_and_is_the_same(sound: FileSound, tmp_path: Path) -> None:
    path = tmp_path / "gone.wav"
    path.write_bytes(sound.path.read_bytes())
    gone = FileSound(path)
    joined = JoinedSounds((gone, sound), (0.25,))
    expected = joined.waveform(16_000)
    memory = SoundMemory(rate=16_000, megabytes=1)
    assert torch.equal(memory(gone), expected[:8_000])
    path.unlink()
    assert torch.equal(memory(joined), expected)


def test_a_full_memory_keeps_what_it_has(sound: FileSound, tmp_path: Path) -> None:
    other = tmp_path / "other.wav"
    other.write_bytes(sound.path.read_bytes())
    memory = SoundMemory(rate=16_000, megabytes=8_000 * 4 / 1e6)
    first, second = memory(sound), memory(FileSound(other))
    assert torch.equal(first, second) and memory(sound) is first
    other.unlink()
    with pytest.raises(UserError, match=r"other\.wav"):
        memory(FileSound(other))


def test_the_generator_decides_about_augmentation(sound: FileSound) -> None:
    plain = Waveforms([(sound, "a")], rate=16_000)
    varied = Waveforms([(sound, "a")], rate=16_000, augment=Augment(noise_chance=1))
    first, second, other = (varied.sample(0, random.Random(seed)) for seed in (1, 1, 2))
    assert first is not None and second is not None and other is not None
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(plain.sample(0, random.Random(1)), sound.waveform(16_000))  # type: ignore[arg-type]


def test_more_than_a_minute_is_cropped_or_refused(tmp_path: Path) -> None:
    long = FileSound(save(tmp_path / "long.wav", tone(1, seconds=61, rate=1_000), rate=1_000))
    cropped = Waveforms([(long, "long")], rate=1_000, longest="crop")
    found = cropped.sample(0, random.Random(0))
    assert found is not None and len(found) == LONGEST_SECONDS * 1_000 and cropped.seconds == [LONGEST_SECONDS]
    refused = Waveforms([(long, "long")], rate=1_000)
    assert refused.sample(0, random.Random(0)) is None and refused.broken == {"long"}
    with pytest.raises(UserError, match="at most 60 s"):
        Waveforms([(long, "long")], rate=1_000, on_error="fail").sample(0, random.Random(0))


def test_of_hours_no_more_than_the_crop_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = FileSound(save(tmp_path / "long.wav", tone(1, seconds=190, rate=1_000), rate=1_000))
    whole = long.waveform(1_000)
    assert torch.equal(long.part(1_000, start=40_500, samples=70_000), whole[40_500:110_500])
    assert torch.equal(long.part(1_000, start=180_000, samples=70_000), whole[180_000:])
    with pytest.raises(UserError, match=r"ends after 190\.0 s"):
        long.part(1_000, start=190_000, samples=1)
    monkeypatch.setattr("speech.utterance.read_audio", lambda *_, **__: pytest.fail("read as a whole"))
    found = Waveforms([(long, "long")], rate=1_000, longest="crop").sample(0, random.Random(0))
    assert found is not None and len(found) == 60_000
    assert any(torch.equal(found, whole[start : start + 60_000]) for start in range(130_001))
    with pytest.raises(UserError, match="long: 190 s; expected an utterance of at most 60 s"):
        Waveforms([(long, "long")], rate=1_000, on_error="fail").sample(0, random.Random(0))


def test_noise_is_drawn_from_a_folder(sound: FileSound, tmp_path: Path) -> None:
    noise_S = save(tmp_path / "noises" / "hum.wav", tone(7, seconds=2)) and FileSound(
        tmp_path / "noises" / "hum.wav"
    ).waveform(16_000)
    noisy = Augment(speeds=(1.0,), noise_chance=1, noise_snr_db=(0, 0), noise_folder=tmp_path / "noises")
    found = Waveforms([(sound, "a")], rate=16_000, augment=noisy).sample(0, random.Random(0))
    assert found is not None
    added_S = found - sound.waveform(16_000)
    looped_S = torch.cat([noise_S, noise_S])
    likest = max(
        float(torch.nn.functional.cosine_similarity(added_S, looped_S[start : start + 8_000], dim=0))
        for start in range(0, 32_000)
    )
    assert likest > 0.999
    with pytest.raises(UserError, match="no sound found"):
        Waveforms([(sound, "a")], rate=16_000, augment=Augment(noise_folder=tmp_path / "noises" / "none"))


def test_what_is_no_sound_is_skipped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "notes.wav").write_text("no sound")
    broken = FileSound(tmp_path / "notes.wav")
    waveforms = Waveforms([(broken, "notes")], rate=16_000)
    assert broken.seconds == 0 and waveforms.sample(0, random.Random(0)) is None and waveforms.broken == {"notes"}


def test_augmentation_stays_within_what_the_encoder_hears(sound: FileSound) -> None:
    slowed = Augment(speeds=(0.5,), noise_chance=0)
    heard = Waveforms([(sound, "a")], rate=16_000, augment=slowed, heard_seconds=0.75).sample(0, random.Random(0))
    assert torch.equal(heard, sound.waveform(16_000))  # type: ignore[arg-type]
    free = Waveforms([(sound, "a")], rate=16_000, augment=slowed).sample(0, random.Random(0))
    assert free is not None and len(free) == 16_000
    with pytest.raises(UserError, match="expected an utterance of at most"):
        Waveforms([(sound, "a")], rate=16_000, heard_seconds=0.4, on_error="fail").sample(0, random.Random(0))


def test_wanted_is_the_text_or_the_reply_to_it(sound: FileSound) -> None:
    assert Utterance(sound=sound, text="one", id="a").wanted == "one"
    assert Utterance(sound=sound, text="one", id="a", task="dialogue", reply=Reply("Two.", (2,))).wanted == "Two."
    with pytest.raises(ValueError, match="a dialogue without its reply"):
        _ = Utterance(sound=sound, text="one", id="a", task="dialogue").wanted
