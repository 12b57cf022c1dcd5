"""Built-in speech: nothing held out is in training, and the same number gives the same sound."""

import pytest
import torch

from speech.spoken import HELD_OUT_VARIANTS
from speech.spoken_data import spoken_sentences, spoken_translations
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


def test_translations_are_spoken_by_voices_of_their_language() -> None:
    made = spoken_translations(("German", "French"), count=40, split="train", seed=0)
    assert {u.sound.voice.language for u in made} == {"de", "fr"}  # type: ignore[attr-defined]
    assert {(u.task, u.language) for u in made} == {("translate", "English")}
    assert len(made[0].sound.waveform(16_000)) > 3_000
    kept = spoken_translations(("German", "French"), count=40, split="held_out", seed=0)
    assert not {u.text for u in made} & {u.text for u in kept}
