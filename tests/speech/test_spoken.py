"""Built-in speech: the same words from the same arguments, whatever was said before, in threads and in forks."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from multimodal.errors import UserError
from speech import spoken
from speech.spoken import (
    ENGLISH_ACCENTS,
    HELD_OUT_VARIANTS,
    LANGUAGES,
    TRAIN_VARIANTS,
    Voice,
    english_voices,
    speak,
)

TEXT = "Bring seven blue books."


def test_the_splits_share_no_speaker() -> None:
    assert not set(TRAIN_VARIANTS) & set(HELD_OUT_VARIANTS)
    train, held_out = english_voices("train"), english_voices("held_out")
    assert len(set(train)) == len(train) == len(TRAIN_VARIANTS) * len(ENGLISH_ACCENTS)
    assert not {voice.variant for voice in train} & {voice.variant for voice in held_out}


def test_without_the_library_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    spoken._installed.cache_clear()
    with pytest.raises(UserError, match="pip install"):
        speak(TEXT)
    spoken._installed.cache_clear()


@pytest.fixture(scope="module")
def espeak() -> None:
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed (pip install espeakng-loader)")


pytestmark = pytest.mark.usefixtures("espeak")


def test_the_same_arguments_give_the_same_samples() -> None:
    voices = [Voice(), Voice("en-us", "f3"), Voice("en", "klatt2"), Voice("en-029", "m3"), Voice("de")]
    first = [speak(TEXT, voice=voice) for voice in voices]
    for text in ("a", "Something else, and longer."):
        speak(text, voice=Voice("fr", "steph"), words_a_minute=120)
        for voice, waveform in zip(reversed(voices), reversed(first), strict=True):
            assert torch.equal(speak(TEXT, voice=voice), waveform)


def test_it_is_a_waveform_of_speech() -> None:
    waveform = speak(TEXT)
    assert waveform.dtype == torch.float32 and waveform.ndim == 1
    assert 0.8 < len(waveform) / 16_000 < 3
    assert 0.1 < waveform.abs().max() <= 1
    assert len(speak(TEXT, rate=22_050)) == pytest.approx(len(waveform) * 22_050 / 16_000, abs=2)


def pitch_hertz(waveform: torch.Tensor) -> float:
    """The strongest period between 60 and 400 Hz."""
    spectrum = torch.fft.rfft(waveform, 2 * len(waveform)).abs().square()
    correlation = torch.fft.irfft(spectrum)[: 16_000 // 60]
    return 16_000 / (40 + int(correlation[40:].argmax()))


def test_text_voice_rate_and_pitch_are_heard() -> None:
    assert len(speak(TEXT, words_a_minute=300)) < 0.8 * len(speak(TEXT, words_a_minute=150))
    assert len(speak(TEXT + " " + TEXT)) > 1.6 * len(speak(TEXT))
    low, high = (speak(TEXT, pitch=pitch) for pitch in (10, 90))
    assert pitch_hertz(low) < 0.8 * pitch_hertz(high)
    assert pitch_hertz(speak(TEXT, voice=Voice("en-us", "f3"))) > 1.4 * pitch_hertz(speak(TEXT))


def test_numbers_are_read_out_in_each_language() -> None:
    spoken_numbers = [speak("47", voice=Voice(language)) for language in LANGUAGES.values()]
    for i, waveform in enumerate(spoken_numbers):
        assert len(waveform) > 0.3 * 16_000
        assert not any(torch.equal(waveform, other) for other in spoken_numbers[:i])
    in_words = [speak("siebenundvierzig", voice=Voice("de")), speak("quarante-sept", voice=Voice("fr"))]
    for digits, words in zip((spoken_numbers[1], spoken_numbers[2]), in_words, strict=True):
        assert len(digits) == pytest.approx(len(words), rel=0.1)


def test_every_variant_is_there_and_sounds_different() -> None:
    seen: set[bytes] = set()
    for variant in (*TRAIN_VARIANTS, *HELD_OUT_VARIANTS):
        waveform = speak("Yes.", voice=Voice("en-us", variant))
        assert waveform.abs().max() > 0.01 and (waveform.abs() >= 0.999).float().mean() < 1e-3, variant
        seen.add(waveform.numpy().tobytes())
    assert len(seen) == len(TRAIN_VARIANTS) + len(HELD_OUT_VARIANTS)
    accents = {speak("Bath water, please.", voice=Voice(accent)).numpy().tobytes() for accent in ENGLISH_ACCENTS}
    assert len(accents) == len(ENGLISH_ACCENTS)


def test_threads_do_not_mix() -> None:
    jobs = [(f"Number {i}.", Voice("en-us", ("f3", "m3", "klatt")[i % 3])) for i in range(12)]
    alone = [speak(text, voice=voice) for text, voice in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: speak(job[0], voice=job[1]), jobs))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forks_in_the_middle_of_speech_speak_the_same() -> None:
    expected = speak(TEXT)
    with ThreadPoolExecutor(1) as pool:
        busy = [pool.submit(speak, "One two three four five.") for _ in range(4)]
        children = []
        for _ in range(3):
            time.sleep(0.003)
            child = os.fork()
            if not child:
                torch.set_num_threads(1)  # as in a loader's worker: the parent's threads are not there
                os._exit(0 if torch.equal(speak(TEXT), expected) else 1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        assert all(len(job.result()) for job in busy)


def test_hundreds_of_times_real_time() -> None:
    speak(TEXT)
    begin, seconds = time.process_time(), 0.0
    for i in range(10):
        seconds += len(speak(f"{TEXT} The garden is {i} miles away from here.")) / 16_000
    assert seconds / (time.process_time() - begin) > 100


@pytest.mark.parametrize(
    ("text", "arguments", "match"),
    [
        ("", {}, "nothing to say"),
        ("  \n", {}, "nothing to say"),
        ("hello", {"voice": Voice("xx")}, "no language 'xx'"),
        ("hello", {"voice": Voice("en-us", "nobody")}, "no variant 'nobody'"),
        ("hello", {"words_a_minute": 20}, "80 to 450"),
        ("hello", {"pitch": 100}, "0 to 99"),
    ],
)
def test_impossible_wishes_are_refused(text: str, arguments: dict[str, object], match: str) -> None:
    with pytest.raises(UserError, match=match):
        speak(text, **arguments)  # pyright: ignore[reportArgumentType]


def test_strange_text_is_no_danger() -> None:
    for text in ("[[h@'loU]] <b>x</b> \0 &amp; %s %n", "日本", "🙂", "1e99 " * 50):
        assert len(speak(text)) > 0
