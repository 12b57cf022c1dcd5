"""Transcripts in every layout, and one clear line for each way that they can be wrong."""

import json
from pathlib import Path

import pytest

from multimodal.errors import UserError
from speech.transcript_rows import Languages, SpeechColumns
from speech.transcripts import read_transcripts
from tests.speech.made_speech import save, save_digits, tone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        save(tmp_path / "clips" / f"{name}.wav", tone(1))
    return tmp_path


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_with_or_without_endings_splits_and_usual_names(folder: Path) -> None:
    table(folder / "transcripts.tsv", "id\tsplit\ttext", "a\ttrain\tone, two", "b\tdev\ttwo", "c\ttrain\tthree")
    found = read_transcripts(folder, split="train")
    assert [(u.id, u.text, u.sound.path.name) for u in found] == [  # type: ignore[attr-defined]
        ("a", "one, two", "a.wav"), ("c", "three", "c.wav")
    ]  # fmt: skip
    assert [u.id for u in read_transcripts(folder / "transcripts.tsv", split="validation")] == ["b"]
    assert len(found[0].sound.waveform(16_000)) == pytest.approx(16_000 * found[0].sound.seconds, abs=2)


def test_common_voice_has_a_file_for_each_split(folder: Path) -> None:
    for split, name in (("train", "a"), ("test", "b")):
        header = "client_id\tpath\tsentence\tup_votes\tlocale"
        table(folder / f"{split}.tsv", header, f"x\t{name}.wav\tHello, you.\t2\tnl")
    (found,) = read_transcripts(folder, split="test")
    assert (found.id, found.text, found.language, found.speaker) == ("b.wav", "Hello, you.", "Dutch", "x")


def test_a_manifest_names_languages_and_tasks(folder: Path) -> None:
    lines = [
        {"audio_filepath": "a.wav", "text": "one", "split": "train"},
        {"audio_filepath": "b.wav", "text": "one", "language": "French", "task": "translate", "split": "train"},
    ]
    manifest = table(folder / "m.jsonl", *map(json.dumps, lines))
    found = read_transcripts(manifest, split="train", languages=Languages(text="Dutch"))
    assert [(u.task, u.language) for u in found] == [("transcribe", "Dutch"), ("translate", "French")]
    table(manifest, json.dumps(lines[0] | {"task": "sing"}))
    with pytest.raises(UserError, match=r"line 1: task 'sing'; expected transcribe, translate or dialogue"):
        read_transcripts(manifest, split="train")


def test_covost_has_a_translation_beside_the_text(folder: Path) -> None:
    table(folder / "train.tsv", "path\tsentence\ttranslation\tlanguage", "a\tJa.\tYes.\tde", "b\tNein.\t\tde")
    found = read_transcripts(folder, split="train")
    assert [(u.task, u.language, u.text) for u in found] == [
        ("transcribe", "German", "Ja."), ("translate", "English", "Yes."), ("transcribe", "German", "Nein.")
    ]  # fmt: skip
    assert [u.text for u in read_transcripts(folder, split="train", limit=1)] == ["Ja.", "Yes."]
    plain = read_transcripts(folder, split="train", columns=SpeechColumns(translation=""))
    assert [u.text for u in plain] == ["Ja.", "Nein."]


def test_librispeech_grid_and_digits_as_they_come(tmp_path: Path) -> None:
    book = tmp_path / "libri" / "84" / "121123"
    save(book / "84-121123-0000.flac", tone(2))
    table(book / "84-121123-0000.trans.txt", "84-121123-0000 GO DO YOU HEAR")
    (found,) = _of(tmp_path / "libri", "train") or _of(tmp_path / "libri", "dev") or _of(tmp_path / "libri", "test")
    assert (found.text, found.speaker) == ("GO DO YOU HEAR", "84") and found.sound.seconds == pytest.approx(0.3)
    for name in ("bbaf3s", "bbaf4p", "other"):
        save(tmp_path / "grid" / "s1" / f"{name}.wav", tone(3))
    texts = {u.text for split in ("train", "dev", "test") for u in _of(tmp_path / "grid", split)}
    assert texts == {"bin blue at f three soon", "bin blue at f four please"}
    assert len(read_transcripts(save_digits(tmp_path / "fsdd"), split="test")) == 20
    table(tmp_path / "grid" / "word_times.tsv", "id\tword\tstart\tend", "bbaf3s\tbin\t0\t1")
    assert {u.text for split in ("train", "dev", "test") for u in _of(tmp_path / "grid", split)} == texts


def _of(folder: Path, split: str) -> list:  # type: ignore[type-arg]
    try:
        return read_transcripts(folder, split=split)
    except UserError as error:
        assert "no utterances of split" in str(error)
        return []


def test_a_missing_recording_is_broken_when_it_is_read(folder: Path) -> None:
    table(folder / "train.csv", "audio,text", "a.wav,one", "gone.wav,two")
    found = read_transcripts(folder, split="train")
    assert found[1].sound.seconds == 0
    with pytest.raises(UserError, match=r"gone\.wav: no such file"):
        found[1].sound.waveform(16_000)


def test_what_is_wrong_is_said_in_one_line(folder: Path) -> None:
    cases = {
        folder / "none": "expected a transcript table",
        folder / "clips" / "a.wav": "not a table",
        folder / "clips": "no transcripts found",
        table(folder / "x.tsv", "sound\ttext", "a\tone"): "no column 'audio'",
    }
    for source, message in cases.items():
        with pytest.raises(UserError, match=message):
            read_transcripts(source, split="train")
    named = read_transcripts(folder / "x.tsv", split="train", columns=SpeechColumns(audio="sound"))
    assert [u.text for u in named] == ["one"]
    table(folder / "y.tsv", "id\ttext\tsplit", "a\tone\ttrain")
    with pytest.raises(UserError, match=r"no utterances of split 'test'; splits found: train"):
        read_transcripts(folder / "y.tsv", split="test")


def test_librispeech_has_splits_of_its_own(tmp_path: Path) -> None:
    for number, part in enumerate(("train-clean-100", "train-other-500", "dev-clean", "dev-other", "test-clean")):
        book = tmp_path / part / str(number) / "7"
        save(book / f"{number}-7-0.flac", tone(2))
        table(book / f"{number}-7.trans.txt", f"{number}-7-0 GO")
    speakers = {split: sorted(u.speaker for u in read_transcripts(tmp_path, split=split)) for split in ("train", "dev")}
    assert speakers == {"train": ["0", "1"], "dev": ["2", "3"]}
    assert [u.speaker for u in read_transcripts(tmp_path, split="dev-other")] == ["3"]
    assert [u.speaker for u in read_transcripts(tmp_path / "test-clean", split="test")] == ["4"]
    with pytest.raises(UserError, match="no utterances of split 'train'; splits found: test-clean"):
        read_transcripts(tmp_path / "test-clean", split="train")


@pytest.mark.parametrize("name", ["train.tsv", "train.jsonl"])
def test_nothing_is_tested_that_was_trained_on(folder: Path, name: str) -> None:
    rows = [f"{i}.wav\tone" for i in range(200)]
    if name.endswith("jsonl"):
        table(folder / name, *(json.dumps({"audio": f"{i}.wav", "text": "one"}) for i in range(200)))
    else:
        table(folder / name, "path\tsentence", *rows)
    for source in (folder, folder / name):
        assert len(read_transcripts(source, split="train")) == 200
        for split in ("dev", "test"):
            with pytest.raises(UserError, match="named after split 'train'"):
                read_transcripts(source, split=split)


def test_lines_without_a_text_are_not_learnt_as_silence(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    table(folder / "train.tsv", "path\tsentence", "a\tone", "b\t ")
    assert [u.id for u in read_transcripts(folder, split="train")] == ["a"]
    assert "train.tsv: 1 lines without a text left out" in caplog.text
    table(folder / "train.tsv", "path\tsentence\ttranslation", "a\t...\t", "b\t\u266a\tYes.", "c\tone\t")
    assert {u.text for u in read_transcripts(folder, split="train")} == {"Yes.", "one"}
    manifest = table(folder / "m.jsonl", json.dumps({"audio": "a.wav", "txt": "one", "split": "train"}))
    with pytest.raises(UserError, match=r"m\.jsonl, line 1: no 'text'; keys found: audio, txt, split"):
        read_transcripts(manifest, split="train")


def test_names_of_columns_may_stand_in_quotes(folder: Path) -> None:
    table(folder / "train.csv", '"path","sentence","language","speaker"', '"a","one, two","de","x"')
    (found,) = read_transcripts(folder, split="train")
    assert (found.id, found.text, found.language, found.speaker) == ("a", "one, two", "German", "x")


def test_lines_that_mean_a_part_of_a_recording_are_refused(folder: Path) -> None:
    line = {"audio_filepath": "a.wav", "text": "one", "offset": 0.0, "split": "train"}
    manifest = table(folder / "m.jsonl", json.dumps(line))
    assert len(read_transcripts(manifest, split="train")) == 1
    table(manifest, json.dumps(line | {"offset": 2.5}))
    with pytest.raises(UserError, match=r"line 1: 'offset' 2\.5; expected a sound file for each line"):
        read_transcripts(manifest, split="train")
