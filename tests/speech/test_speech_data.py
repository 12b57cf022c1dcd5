"""What a run learns and is judged by, whatever the source."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from multimodal.data.grid_grammar import SLOTS
from multimodal.errors import UserError
from speech.speech_data import (
    SpeechDataConfig,
    batches_by_seconds,
    dev_utterances,
    evaluation_sets,
    mix,
    training_utterances,
)
from speech.utterance import FileSound, Utterance, Waveforms
from tests.speech.made_speech import save, save_digits, tone
from tests.tiny_models import train_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_digits(tmp_path_factory.mktemp("fsdd"))


def test_digits_come_alone_and_in_a_row(folder: Path) -> None:
    data = SpeechDataConfig(source=str(folder), connected=15, test_split="test", test_count=12)
    assert len(training_utterances(data, seed=0)) == 20 + 15
    sets = evaluation_sets(data, seed=0)
    assert {name: len(found) for name, found in sets.items()} == {"": 12, "connected": 12}
    assert all(3 <= len(u.text.split()) <= 6 for u in sets["connected"])
    assert {u.id for u in dev_utterances(data, seed=0)} <= {u.id for u in training_utterances(data, seed=0)}
    assert evaluation_sets(SpeechDataConfig(source=str(folder)), seed=0) == {}


def test_built_in_voices_say_pieces_too() -> None:
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed (pip install espeakng-loader)")
    data = SpeechDataConfig(sentences=30, cuttings=20)
    found = training_utterances(data, seed=0)
    assert found[:30] == training_utterances(replace(data, cuttings=0), seed=0)
    assert len(found) == 50 and all(1 <= len(u.text.split()) <= 4 for u in found[30:])
    assert len({u.id for u in found}) == 50


def test_built_in_voices_speak_beside_the_recordings_of_a_set(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed (pip install espeakng-loader)")
    alone = SpeechDataConfig(source=str(folder), connected=5)
    digits = training_utterances(replace(alone, voices=40), seed=0)
    assert digits[:25] == training_utterances(alone, seed=0)
    assert len(digits) == 65 and {word for u in digits[25:] for word in u.text.split()} <= set(SLOTS["digit"])
    save(tmp_path / "one.wav", tone(0.3))
    (tmp_path / "train.tsv").write_text("audio\ttext\none.wav\tsome words\n")
    sentences = training_utterances(SpeechDataConfig(source=str(tmp_path), voices=20), seed=0)
    assert len(sentences) == 21 and len({u.speaker for u in sentences}) > 5
    assert any(set(u.text.split()) - set(SLOTS["digit"]) for u in sentences[1:])
    assert len({u.id for u in digits}) == 65 and len({u.id for u in sentences}) == 21


def test_a_share_of_the_transcripts_is_drawn_by_the_seed(folder: Path) -> None:
    data = SpeechDataConfig(source=str(folder), share=0.25)
    first, again, other = (training_utterances(data, seed=seed) for seed in (0, 0, 1))
    assert len(first) == 5 and first == again and first != other


def test_a_part_of_what_is_transcribed_is_also_replied_to(folder: Path) -> None:
    data = SpeechDataConfig(source=str(folder), dialogue=0.25, connected=4, test_split="test", test_count=6)
    first, again, other = (training_utterances(data, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert Counter(u.task for u in first) == {"transcribe": 24, "dialogue": 6}
    transcribed = {(u.id, u.text) for u in first if u.task == "transcribe"}
    assert {(u.id, u.text) for u in first if u.task == "dialogue"} <= transcribed
    warm = training_utterances(replace(data, temperature=2.0), seed=0)
    assert Counter(u.task for u in warm) == {"transcribe": 24, "dialogue": 12}
    sets = evaluation_sets(data, seed=0)
    assert set(sets) == {"", "connected", "dialogue"} and len(sets["dialogue"]) == 6
    assert [replace(u, task="transcribe") for u in sets["dialogue"]] == sets[""]
    assert evaluation_sets(replace(data, dialogue=0.0), seed=0) == {n: sets[n] for n in ("", "connected")}


def test_a_set_may_say_what_is_to_be_replied_to(tmp_path: Path) -> None:
    lines = [f"{i}.wav\tword {i}\t{task}" for i, task in enumerate(("", "dialogue", "translate"))]
    (tmp_path / "test.tsv").write_text("\n".join(["audio\ttext\ttask", *lines]) + "\n")
    sets = evaluation_sets(SpeechDataConfig(source=str(tmp_path), test_split="test"), seed=0)
    assert {name: [u.text for u in found] for name, found in sets.items()} == {
        "": ["word 0"],
        "translation": ["word 2"],
        "dialogue": ["word 1"],
    }


def test_built_in_speech_keeps_a_language_for_the_test() -> None:
    data = SpeechDataConfig(sentences=30, translations=60, test_count=8)
    train, sets = training_utterances(data, seed=0), evaluation_sets(data, seed=0)
    assert set(evaluation_sets(replace(data, dialogue=0.1), seed=0)) == {*sets, "dialogue"}
    assert set(sets) == {"", "foreign", "translation", "zero_shot"}
    translated = Counter(u.id.split()[0] for u in train if u.task == "translate")
    assert translated == {"German": 20, "French": 20, "Spanish": 20}
    transcribed = Counter(u.language for u in train if u.task == "transcribe")
    assert transcribed == {"English": 30, "German": 20, "French": 20, "Spanish": 20, "Italian": 20}
    assert {(u.id.split()[0], u.task) for u in sets["zero_shot"]} == {("Italian", "translate")}
    assert {u.language for u in sets["foreign"]} == {"German", "French", "Spanish", "Italian"}
    assert not {u.text for u in train} & {u.text for found in sets.values() for u in found}


@pytest.mark.parametrize(("temperature", "wanted"), [(1.0, 4), (2.0, 20), (1e9, 100)])
def test_rare_tasks_come_more_often_at_a_temperature(temperature: float, wanted: int) -> None:
    sound = None
    utterances = [Utterance(sound=sound, text="a", id=f"a{i}") for i in range(100)]  # type: ignore[arg-type]
    utterances += [Utterance(sound=sound, text="b", id=f"b{i}", task="translate") for i in range(4)]  # type: ignore[arg-type]
    mixed = Counter(u.id for u in mix(utterances, temperature=temperature))
    assert sum(n for id, n in mixed.items() if id[0] == "a") == 100
    rare = [n for id, n in mixed.items() if id[0] == "b"]
    assert sum(rare) == wanted and max(rare) - min(rare) <= 1


def test_batches_by_seconds_are_wanted_or_not(tmp_path: Path) -> None:
    sound = FileSound(save(tmp_path / "a.wav", tone(1, seconds=1)))
    waveforms = Waveforms([(sound, str(i)) for i in range(9)], rate=16_000)
    assert batches_by_seconds(waveforms, SpeechDataConfig(), train_config()) is None
    order = batches_by_seconds(waveforms, SpeechDataConfig(batch_seconds=3, buckets=1), train_config(batch_size=8))
    assert order is not None and len(order(0)) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 0},
        {"voices": -1},
        {"dialogue": 1.5},
        {"temperature": 0.5},
        {"silence": 1},
        {"zero_shot": "Dutch"},
        {"keep_mb": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"speech data: {next(iter(wrong))}"):
        SpeechDataConfig(**wrong)  # type: ignore[arg-type]
