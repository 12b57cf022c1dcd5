"""The speech scripts as people run them: files written, one clear line for bad input, the shipped recipes are valid."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import scripts
from multimodal.config import parse
from multimodal.model import MultimodalModel
from scripts import demo_asr, evaluate_asr, pretrain_speech_encoder, train_asr, transcribe
from scripts.spoken_texts import ALL_WRITERS, scene_caption
from speech.asr_training import AsrConfig
from speech.encoder_training import SpeechEncoderConfig
from speech.transcribing import Segment
from tests.scripts.conftest import Cli
from tests.speech.made_speech import save, save_digits, tone
from tests.speech.test_hub_speech import save_model, save_recordings
from tests.speech.test_microphone import microphone
from tests.speech.test_speech_modality import CONFIG
from tests.speech.test_transcripts_hub import save as save_parquet
from tests.tiny_models import picture

SCRIPTS: dict[str, Any] = {
    m.__name__.split(".")[1]: m for m in (demo_asr, evaluate_asr, pretrain_speech_encoder, train_asr, transcribe)
}
RECIPES = {
    "demo_asr": demo_asr.Config,
    "fsdd": AsrConfig,
    "grid_speech": AsrConfig,
    "speech": AsrConfig,
    "speech_encoder": SpeechEncoderConfig,
    "speech_ctc": SpeechEncoderConfig,
    "spoken_encoder": SpeechEncoderConfig,
}
ENCODER = {"mels": 20, "width": 32, "layers": 1, "heads": 2, "ffn": 32}
TRAIN = {"steps": 2, "batch-size": 4, "device": "cpu", "tensorboard": False}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_typos(cli: Cli, script: str) -> None:
    helped = cli(script, "--help")
    assert helped.status == 0 and f"python -m scripts.{script}" in helped.out
    typo = cli(script, "--no-such-flag", "1")
    assert typo.status == 2 and typo.err.count("\n") == 1 and "--no-such-flag" in typo.err


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_that_ship_are_valid(name: str) -> None:
    file = Path(scripts.__path__[0]) / "configs" / f"{name}.yaml"
    assert parse(RECIPES[name], ["--config", str(file), "--run-dir", "runs/x"]).train.steps > 0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Path) -> Path:
    """Tiny sizes for `train_asr` and `demo_asr`."""
    settings = {
        "decoder": str(decoder_folder),
        "encoder": ENCODER,
        "adapter": {"width": 16, "heads": 2, "ffn": 32},
        "ctc": {"steps": 1},
        "adapter-only": {"steps": 1},
        "max-new-tokens": 3,
        "train": TRAIN | {"learning-rates": {"adapter": 0.001, "encoder": 0.001, "tokens": 0.001}},
    }
    file = tmp_path_factory.mktemp("recipes") / "asr.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def speech_adapter(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Path) -> Path:
    from multimodal.pretrained import load_decoder

    decoder, tokenizer = load_decoder(str(decoder_folder), dtype=torch.float32, device=torch.device("cpu"))
    model = MultimodalModel(decoder, tokenizer, decoder_name=str(decoder_folder))
    model.add("audio", CONFIG)
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    model.save_pretrained(folder)
    return folder


def test_the_demo_writes_report_and_numbers(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed (pip install espeakng-loader)")
    sizes = ("--data.sentences", 12, "--data.translations", 6, "--data.test-count", 4, "--data.dev-count", 3)
    ended = cli("demo_asr", "--config", recipe, "--run-dir", tmp_path / "run", "--cards", 2, *sizes)
    assert ended.status == 0, ended.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["text_logits_max_abs_diff"] == 0
    assert {"wer", "cer", "wer_shuffled", "wer_silence", "real_time_factor", "zero_shot_exact"} <= metrics.keys()
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<audio controls") == 2 and "stage adapter_only" in page


def test_encoder_then_adapter_then_transcripts(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    digits = save_digits(tmp_path / "fsdd")
    settings = {"encoder": ENCODER, "train": TRAIN | {"learning-rates": {"encoder": 0.001, "heads": 0.001}}}
    (tmp_path / "encoder.yaml").write_text(yaml.safe_dump(settings))
    source = ("--untranscribed", "--data.source", digits / "recordings")
    ended = cli("pretrain_speech_encoder", "--config", tmp_path / "encoder.yaml", *source, "--run-dir", tmp_path / "e")
    assert ended.status == 0, ended.err
    set_ = ("--data.source", digits, "--data.dev-count", 0, "--data.test-split", "test", "--data.test-count", 8)
    trained = ("--encoder-weights", tmp_path / "e" / "encoder", "--run-dir", tmp_path / "a")
    ended = cli("train_asr", "--config", recipe, *set_, *trained)
    assert ended.status == 0 and "connected: wer" in ended.out, ended.err
    assert "connected_wer_silence" in json.loads((tmp_path / "a" / "metrics.json").read_text())
    again = cli("train_asr", "--config", recipe, *set_, *trained)
    assert again.status == 2 and "expected --resume" in again.err
    judged = ("evaluate_asr", "--adapter", tmp_path / "a" / "adapter", "--max-new-tokens", 3, *set_)
    ended = cli(*judged, "--run-dir", tmp_path / "t")
    assert ended.status == 0 and (tmp_path / "t" / "report.html").is_file(), ended.err
    trained_scores, scores = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("a", "t"))
    for name in ("wer", "connected_wer", "wer_shuffled"):
        assert scores[name] == pytest.approx(trained_scores[name])
    assert len((tmp_path / "t" / "transcripts.jsonl").read_text().splitlines()) == 16
    said = cli("transcribe", digits, "--adapter", tmp_path / "a" / "adapter", "--max-new-tokens", 3)
    assert said.status == 0 and len(said.out.splitlines()) == 40


def test_an_encoder_of_transformers_from_its_name_to_transcripts(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    whisper, spoken = save_model("whisper", tmp_path / "whisper"), save_recordings(tmp_path / "spoken")
    set_ = ("--data.source", spoken, "--data.dev-count", 0, "--data.test-split", "test")
    rates = ("--ctc.steps", 0, "--train.learning-rates", "adapter", 1e-3, "encoder", 0, "tokens", 1e-3)
    run = ("--encoder-name", whisper, "--run-dir", tmp_path / "a")
    ended = cli("train_asr", "--config", recipe, *set_, *rates, *run)
    assert ended.status == 0 and "a token of speech stands for 40 ms" in ended.out, ended.err
    adapter = ("--adapter", tmp_path / "a" / "adapter", "--max-new-tokens", 3)
    ended = cli("evaluate_asr", *adapter, *set_, "--run-dir", tmp_path / "t")
    assert ended.status == 0 and (tmp_path / "t" / "report.html").is_file(), ended.err
    long = save(tmp_path / "long.wav", tone(3, seconds=2.5))
    said = cli("transcribe", spoken, long, *adapter)
    assert said.status == 0 and len(said.out.splitlines()) == 11 and not said.err, said.err


def test_a_data_set_of_the_hub_is_learnt_and_judged_by_both_tasks(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    texts = {"sentence": ["eins zwei", "drei", "vier"], "translation": ["one two", "three", "four"]}
    save_parquet(tmp_path / "set", texts, splits=("train", "test"))
    hub = ("--data.source", tmp_path / "set", "--data.language", "de", "--data.limit", 2, "--data.dev-count", 0)
    ended = cli("train_asr", "--config", recipe, *hub, "--data.test-split", "test", "--run-dir", tmp_path / "a")
    assert ended.status == 0, ended.err
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert {"wer", "translation_bleu", "translation_chrf_silence", "translation_bleu_shuffled"} <= metrics.keys()


def test_transcripts_of_files_and_of_silence(cli: Cli, speech_adapter: Path, tmp_path: Path) -> None:
    quiet = save(tmp_path / "quiet.wav", torch.zeros(16_000))
    loud = save(tmp_path / "loud.flac", tone(3))
    ended = cli("transcribe", quiet, "--adapter", speech_adapter)
    assert ended.status == 0 and json.loads(ended.out) == {"audio": str(quiet), "text": "", "segments": []}
    (tmp_path / "broken.wav").write_text("no sound")
    options = ("--format", "vtt", "--output", tmp_path / "out", "--translate", "--language", "German", "--beams", 2)
    ended = cli("transcribe", tmp_path, "--adapter", speech_adapter, "--max-new-tokens", 3, *options)
    assert ended.status == 0 and "broken.wav: not sound" in ended.err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["loud.vtt", "quiet.vtt"]
    assert (tmp_path / "out" / "quiet.vtt").read_text() == "WEBVTT\n" and loud.exists()
    started = ("transcribe", loud, "--adapter", tmp_path / "none", "--output")  # said before anything is loaded
    ended = cli(*started, tmp_path / "out")
    assert ended.status == 2 and "out: a folder; expected a file for JSON lines" in ended.err
    ended = cli(*started, loud, "--format", "srt")
    assert ended.status == 2 and "loud.flac: a file; expected a folder for subtitles" in ended.err
    save(tmp_path / "more" / "loud.wav", tone(4))
    ended = cli("transcribe", tmp_path, "--adapter", speech_adapter, *options)
    assert ended.status == 2 and "loud.wav would both be written as loud.vtt" in ended.err, ended.err


def test_what_was_written_down_before_an_interruption_is_kept(
    cli: Cli, speech_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [save(tmp_path / f"{name}.wav", tone(3)) for name in "ab"]

    def hear(model: object, source: Path, **options: object) -> list[Segment]:
        if source == files[1]:
            raise KeyboardInterrupt
        return [Segment(0.0, 1.0, "one")]

    monkeypatch.setattr(transcribe, "transcribe", hear)
    for form, written in (("jsonl", tmp_path / "out.jsonl"), ("srt", tmp_path / "out" / "a.srt")):
        place = written if form == "jsonl" else written.parent
        ended = cli("transcribe", *files, "--adapter", speech_adapter, "--format", form, "--output", place)
        assert ended.status == 130 and "one" in written.read_text()
    assert not (tmp_path / "out" / "b.srt").exists()


def test_the_recipe_for_recordings_of_ones_own_needs_recordings_and_a_table_alone(
    cli: Cli, recipe: Path, tmp_path: Path
) -> None:
    for number in range(4):
        save(tmp_path / "mine" / f"{number}.wav", tone(number + 1))
    for split in ("train", "dev", "test"):
        lines = "".join(f"{number}.wav\t{said}\n" for number, said in enumerate(("one", "two", "one two", "two one")))
        (tmp_path / "mine" / f"{split}.tsv").write_text("audio\ttext\n" + lines)
    own = Path(scripts.__path__[0]) / "configs" / "speech.yaml"
    small = ("--config", own, "--config", recipe, "--train.eval-every", 0)
    ended = cli("train_asr", *small, "--data.source", tmp_path / "mine", "--run-dir", tmp_path / "run")
    assert ended.status == 0 and (tmp_path / "run" / "adapter").is_dir(), ended.err


def test_what_the_microphone_hears_is_transcribed(
    cli: Cli, speech_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", microphone(tone(3, seconds=2, rate=44_100)))
    listen = ("transcribe", "--adapter", speech_adapter, "--max-new-tokens", 3, "--microphone")
    ended = cli(*listen, 1.5)
    assert ended.status == 0 and json.loads(ended.out)["audio"] == "microphone", ended.err
    assert "speak now: recording 1.5 s" in ended.err
    monkeypatch.setitem(sys.modules, "sounddevice", microphone())
    ended = cli(*listen, 1.5)
    assert ended.status == 2 and "microphone: Error" in ended.err and "speak now" not in ended.err
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    ended = cli(*listen, 1.5)
    assert ended.status == 2 and "needs the package sounddevice" in ended.err.splitlines()[-1]


BAD = {
    "transcribe --adapter {adapter}": "no sound given",
    "transcribe --adapter {adapter} {tmp}/notes.wav --microphone 2": "expected either a microphone or recordings",
    "transcribe --adapter {adapter} --microphone -1": "a recording of -1.0 s",
    "transcribe --adapter {adapter} {tmp}/none.wav": "none.wav",
    "transcribe --adapter {adapter} {tmp}/notes.wav": "not sound",
    "transcribe {tmp}/notes.wav --adapter {image}": "has no speech",
    "transcribe {tmp}/notes.wav --adapter {tmp}": "expected an adapter folder",
    "caption {picture} --adapter {adapter}": "an adapter for audio; expected one for images",
    "evaluate --adapter {adapter} --run-dir {tmp}/x": "an adapter for audio; expected one for images",
    "train_asr --config {recipe} --run-dir {tmp}/x --data.source {tmp}/none": "expected a transcript table",
    "train_asr --config {recipe} --run-dir {tmp}/x --data.temperature 0": "temperature",
    "train_asr --config {recipe} --run-dir {tmp}/x --data.sentences 4 --encoder-weights {tmp}": "speech_encoder",
    "train_asr --config {recipe} --run-dir {tmp}/x --data.source {tmp}/gone.csv": "no sound",
    "train_asr --config {recipe} --run-dir {tmp}/x --encoder-name e --ctc.learning-rates encoder 0": "--ctc.steps 1",
    "train_asr --config {recipe} --run-dir {tmp}/x --encoder-name e --encoder-weights w": "expected one of the two",
    "pretrain_speech_encoder --config {recipe} --run-dir {tmp}/x": "unknown setting",
    "evaluate_asr --adapter {adapter} --run-dir {tmp}/x --data.source {tmp}/gone.csv": "nothing to evaluate",
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_line_and_status_2(
    cli: Cli, command: str, tmp_path: Path, recipe: Path, speech_adapter: Path, adapter_folder: Path
) -> None:
    (tmp_path / "notes.wav").write_text("no sound")
    (tmp_path / "gone.csv").write_text("audio,text,split\na.wav,one,train\nb.wav,two,dev\n")
    picture().save(tmp_path / "picture.png")
    places = {
        "tmp": tmp_path,
        "picture": tmp_path / "picture.png",
        "adapter": speech_adapter,
        "image": adapter_folder,
        "recipe": recipe,
    }
    ended = cli(*(word.format(**places) for word in command.split()))
    assert ended.status == 2 and BAD[command] in ended.err.splitlines()[-1], ended.err


def test_scene_captions_are_spoken_as_they_are_transcribed() -> None:
    import random

    from multimodal.data.text import spoken_form

    texts = [scene_caption(random.Random(seed)) for seed in range(50)]
    assert texts == [spoken_form(text) for text in texts] and scene_caption in ALL_WRITERS
