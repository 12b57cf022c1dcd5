"""Built-in speech: nothing held out is in training, and the same number gives the same sound."""

import pytest
import torch

from speech.spoken import HELD_OUT_VARIANTS
from speech.spoken_data import foreign_utterances, spoken_sentences
from speech.spoken_texts import number_phrase, short_prose

pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed (pip install espeakng-loader)")
WRITERS = (number_phrase, short_prose)


def test_held_out_sentences_and_voices_are_not_in_training() -> None:
    train = spoken_sentences(WRITERS, count=500, split="train", seed=0)
    test = spoken_sentences(WRITERS, count=100, split="held_out", seed=0)
    assert not {u.text for u in train} & {u.text for u in test}
    variants = [{u.sound.voice.variant for u in some} for some in (train, test)]  # type: ignore[attr-defined]
    assert variants[1] <= set(HELD_OUT_VARIANTS) and not variants[0] & variants[1]


def test_utterances_follow_from_seed_and_number() -> None:
    first = spoken_sentences(WRITERS, count=6, split="train", seed=0)
    assert first == spoken_sentences(WRITERS, count=9, split="train", seed=0)[:6]
    assert first != spoken_sentences(WRITERS, count=6, split="train", seed=1)
    for utterance in first:
        waveform_S = utterance.sound.waveform(16_000)
        assert torch.equal(waveform_S, utterance.sound.waveform(16_000))
        assert 0.4 < utterance.sound.seconds / (len(waveform_S) / 16_000) < 2.5


def test_other_languages_are_spoken_by_their_voices_and_transcribed_or_translated() -> None:
    translated = foreign_utterances(("German", "French"), task="translate", count=40, split="train", seed=0)
    assert [u.sound.voice.language for u in translated] == ["de", "fr"] * 20  # type: ignore[attr-defined]
    assert {(u.task, u.language) for u in translated} == {("translate", "English")}
    assert len(translated[0].sound.waveform(16_000)) > 3_000

    transcribed = foreign_utterances(("French", "Italian"), task="transcribe", count=40, split="train", seed=0)
    assert [(u.task, u.language) for u in transcribed[:2]] == [("transcribe", "French"), ("transcribe", "Italian")]
    assert [u.sound for u in transcribed[::2]] == [u.sound for u in translated[1::2]]
    assert all(u.text == u.sound.text for u in transcribed)  # type: ignore[attr-defined]

    kept = foreign_utterances(("German", "French"), task="translate", count=40, split="held_out", seed=0)
    assert not {u.text for u in translated} & {u.text for u in kept}
