"""Speech of data sets of the hub in their published layouts, from small local copies of them; no hub, no torchcodec."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import soundfile

from multimodal.errors import UserError
from speech.speech_data import SpeechDataConfig, batches_by_seconds, evaluation_sets, training_utterances
from speech.transcript_rows import Languages, SpeechColumns, language_name
from speech.transcripts import read_transcripts
from speech.transcripts_hub import languages_of
from speech.utterance import BytesSound, Waveforms
from tests.speech.made_speech import RATE, tone
from tests.tiny_models import train_config

SECONDS = (0.3, 0.5, 0.4)
VOXPOPULI = datasets.ClassLabel(names=["en", "de", "fr"])
LAYOUTS: dict[str, dict[str, Sequence[Any]]] = {
    "common_voice": {
        "client_id": ["x", "y", "x"],
        "sentence": ["Eins.", "Zwei.", "Drei."],
        "up_votes": [2, 0, 1],
        "locale": ["de", "de", "sv-SE"],
    },
    "voxpopuli": {
        "language": [1, 1, 2],
        "raw_text": ["Eins", "Zwei", "Drei"],
        "normalized_text": ["eins", "zwei", "drei"],
        "speaker_id": ["7", "8", "None"],
    },
    "fleurs": {
        "id": [1, 1, 2],
        "transcription": ["eins", "zwei", "drei"],
        "raw_transcription": ["Eins", "Zwei", "Drei"],
        "language": ["German"] * 3,
    },
    "librispeech": {"file": ["a", "b", "c"], "text": ["ONE", "TWO", "THREE"], "speaker_id": [84, 84, 1272]},
    "other": {"transcript": ["one", "two", "three"], "told": ["eins", "zwei", "drei"]},
}
COVOST = {
    "client_id": ["x", "y", "x"],
    "file": ["a.mp3", "b.mp3", "c.mp3"],
    "sentence": ["Guten Tag.", "Gute Nacht.", ""],
    "translation": ["Good day.", "", "Thank you."],
}


def flac(digit: int, seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(digit, seconds=seconds).numpy(), RATE, format="FLAC")
    return file.getvalue()


def save(folder: Path, columns: dict[str, Sequence[Any]], *, splits: Sequence[str] = ("train",)) -> Path:
    """A data set as parquet, in the way of the hub: sound as bytes in a column that would be decoded."""
    sounds = [{"bytes": flac(i, seconds), "path": f"{i}.flac"} for i, seconds in enumerate(SECONDS)]
    data = datasets.Dataset.from_dict({"audio": sounds} | columns).cast_column("audio", datasets.Audio())
    if "normalized_text" in columns:
        data = data.cast_column("language", VOXPOPULI)
    folder.mkdir(parents=True)
    for split in splits:
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    for name, columns in LAYOUTS.items():
        save(folder / name, columns)
    save(folder / "covost2" / "de_en", COVOST, splits=("train", "validation", "test"))
    files = [f"  - split: {split}\n    path: de_en/{split}-*\n" for split in ("train", "validation", "test")]
    card = f"---\nconfigs:\n- config_name: de_en\n  data_files:\n{''.join(files)}---\n"
    (folder / "covost2" / "README.md").write_text(card)
    return folder


@pytest.mark.parametrize(
    ("name", "texts", "languages", "speakers"),
    [
        ("common_voice", "Eins. Zwei. Drei.", "German German Swedish", ("x", "y", "x")),
        ("voxpopuli", "eins zwei drei", "German German French", ("7", "8", "None")),
        ("fleurs", "eins zwei drei", "German German German", ("", "", "")),
        ("librispeech", "ONE TWO THREE", "English English English", ("84", "84", "1272")),
        ("other", "one two three", "English English English", ("", "", "")),
    ],
)
def test_published_layouts_are_known(hub: Path, name: str, texts: str, languages: str, speakers: Sequence[str]) -> None:
    found = read_transcripts(hub / name, split="train")
    assert [u.text for u in found] == texts.split() and [u.language for u in found] == languages.split()
    assert [u.speaker for u in found] == list(speakers) and {u.task for u in found} == {"transcribe"}
    assert [u.id for u in found] == ["train-0", "train-1", "train-2"]


def test_sounds_are_decoded_when_they_are_used_and_say_how_long_they_are(hub: Path) -> None:
    found = read_transcripts(hub / "librispeech", split="train")
    assert [u.sound.seconds for u in found] == pytest.approx(SECONDS)
    assert [len(u.sound.waveform(16_000)) for u in found] == pytest.approx([16_000 * s for s in SECONDS], abs=2)
    order = batches_by_seconds(
        Waveforms([(u.sound, u.id) for u in found], rate=16_000),
        SpeechDataConfig(batch_seconds=0.9, buckets=1),
        train_config(batch_size=8),
    )
    assert order is not None and all(sum(SECONDS[i] for _, i in order(step)) <= 0.9 + 1e-6 for step in range(4))
    broken = BytesSound(b"no sound", "train-9")
    assert broken.seconds == 0
    with pytest.raises(UserError, match="train-9: not sound"):
        broken.waveform(16_000)


def test_covost_is_transcribed_and_translated_in_the_languages_of_its_configuration(hub: Path) -> None:
    found = read_transcripts(hub / "covost2", split="dev", subset="de_en")
    assert [(u.task, u.language, u.text) for u in found] == [
        ("transcribe", "German", "Guten Tag."),
        ("translate", "English", "Good day."),
        ("transcribe", "German", "Gute Nacht."),
        ("translate", "English", "Thank you."),
    ]
    assert len({u.id for u in found}) == 4 and found[0].sound is found[1].sound
    given = Languages("Dutch", "French")
    assert languages_of("sv-SE_en", given) == Languages("Swedish", "English")
    assert languages_of("en_us", given) == Languages("English", "French")
    assert languages_of("clean", given) == languages_of("", given) == given
    assert language_name("zh-CN") == "Chinese" and language_name("xx-YY") == "xx-YY"


def test_a_run_learns_and_is_judged_by_both_tasks(hub: Path) -> None:
    data = SpeechDataConfig(source=str(hub / "covost2"), subset="de_en", test_split="test")
    assert len(training_utterances(data, seed=0)) == 4
    sets = evaluation_sets(data, seed=0)
    assert {name: [u.language for u in found] for name, found in sets.items()} == {
        "": ["German"] * 2,
        "translation": ["English"] * 2,
    }


def test_columns_and_rows_are_chosen(hub: Path) -> None:
    columns = SpeechColumns(text="told", translation="transcript")
    languages = Languages("German", "English")
    found = read_transcripts(hub / "other", split="train", columns=columns, languages=languages, limit=2)
    assert [(u.language, u.text) for u in found] == [
        ("German", "eins"), ("English", "one"), ("German", "zwei"), ("English", "two")
    ]  # fmt: skip
    raw = read_transcripts(hub / "voxpopuli", split="train", columns=SpeechColumns(text="raw_text"))
    assert [(u.text, u.speaker) for u in raw][:2] == [("Eins", "7"), ("Zwei", "8")]
    held_out = read_transcripts(hub / "librispeech", split="train", speaker="84")
    assert [u.text for u in held_out] == ["THREE"]


def test_what_is_wrong_is_said_in_one_line(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: dict[str, dict[str, Any]] = {
        "no column 'said'; columns found: audio, client_id": {"columns": SpeechColumns(text="said")},
        "no column 'sound'; columns found: audio, client_id": {"columns": SpeechColumns(audio="sound")},
        "no column 'translaton'; columns found": {"columns": SpeechColumns(translation="translaton")},
        "train row 0: task 'x'; expected transcribe, translate or dialogue": {
            "columns": SpeechColumns(task="client_id")
        },
        "no split 'test'; splits found: train": {"split": "test"},
        "BuilderConfig 'de_fr' not found": {"subset": "de_fr"},
    }
    for message, wrong in cases.items():
        with pytest.raises(UserError, match=message):
            read_transcripts(hub / "common_voice", **{"split": "train"} | wrong)
    with pytest.raises(UserError, match="no row with sound and text"):
        read_transcripts(hub / "common_voice", split="train", columns=SpeechColumns(audio="up_votes"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data set 'nobody/none' cannot be read .*expected a folder, a file or a hub"):
        read_transcripts("nobody/none", split="train")
    for nothing in ("none.tsv", "/none/here", "a/b/c"):
        with pytest.raises(UserError, match="expected a transcript table"):
            read_transcripts(nothing, split="train")
