"""The video scripts as people run them: one clear line for bad input, answers, numbers and pages written."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from multimodal.wordnet import PLACE
from tests.multimodal.made_wordnet import write_wordnet
from tests.scripts.conftest import Cli
from tests.tiny_models import ENCODER, ask, clip_file, picture, tiny_video_model

AGGREGATOR = {"group": 4, "latents": 3, "width": 16, "layers": 1, "heads": 2}
RATES = {
    "aggregator": 0.01,
    "video": 0.01,
    "video_gates": 0.5,
    "adapter": 0,
    "gates": 0,
    "encoder": 0,
    "late": 0,
    "tokens": 0,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Path) -> Path:
    """A YAML file with everything that `train_video_qa` and `demo_video` need, on tiny sizes."""
    folder = tmp_path_factory.mktemp("video_recipe")
    data = {"clips": 4, "clip-size": 16, "clip-frames": 6, "dev-count": 0, "clip-folder": str(folder / "clips")}
    train = {"steps": 2, "batch-size": 2, "learning-rates": RATES, "device": "cpu", "tensorboard": False}
    settings = {
        "decoder": str(decoder_folder),
        "encoder": ENCODER,
        "video": {"frames": 6, "adapter": {"every": 2, "aggregator": AGGREGATOR}},
        "data": data,
        "pretrain": {"steps": 2, "frames": 4, "group": 4},
        "train": train,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("video_adapter") / "adapter"
    tiny_video_model(name=str(decoder_folder)).save_pretrained(folder)
    return folder


BAD: dict[str, tuple[str, str]] = {
    "answer_video --adapter {adapter}": ("no clip given", "expected"),
    "answer_video {tmp}/none.mp4 --adapter {adapter}": ("none.mp4", "no such file"),
    "answer_video {tmp}/notes.mp4 --adapter {adapter}": ("notes.mp4", "expected a video"),
    "answer_video {tmp}/none.mp4 --adapter {images}": ("has no video adapter", "video"),
    "answer_video {tmp}/none.mp4": ("--adapter", "expected a value"),
    "answer_video {tmp}/none.mp4 --adapter {adapter} --attention strip": ("--attention strip", "strip.png"),
    "answer_video {tmp}/none.mp4 --adapter {adapter} --attention s.png --describe-with All?": (
        "--attention with --describe-with",
        "no clip",
    ),
    "train_video_qa --config {recipe} --run-dir {tmp}/x --data.source {tmp}/gone --data.inventory": (
        "--data.inventory",
        "expected built-in clips",
    ),
    "answer_video {tmp}/none.mp4 --adapter {adapter} --max-new-tokens 0": ("--max-new-tokens 0", "1 or more"),
    "evaluate_video --adapter {adapter} --run-dir {tmp}/x --cards -1": ("--cards -1", "0 or more"),
    "evaluate_video --adapter {adapter} --run-dir {tmp}/x --max-new-tokens 0": ("--max-new-tokens 0", "1 or more"),
    "train_video_qa --config {recipe} --run-dir {tmp}/x --data.clip-size 0": ("--data.clip-size 0", "1 or more"),
    "demo_video --config {recipe} --run-dir {tmp}/x --held-out 1": ("--held-out 1", "expected 2 or more"),
    "train_video_qa --config {recipe} --run-dir {tmp}/x --data.questions 0": ("--data.questions 0", "1 or more"),
    "train_video_qa --config {recipe} --run-dir {tmp}/x --data.source {tmp}/gone": (
        "gone",
        "expected a folder of clips",
    ),
    "train_video_qa --config {recipe} --run-dir {tmp}/x --data.source {tmp}/empty": (
        "empty",
        "no questions about clips",
    ),
    "evaluate_video --adapter {images} --run-dir {tmp}/x": ("no video parts", "expected an adapter"),
    "evaluate_video --adapter {adapter} --run-dir {tmp}/x --kinds colour": ("'colour'", "expected some of direction"),
    "train_video_qa --config {recipe} --run-dir {tmp}/x --video.frames 0": ("frames 0", "expected 1 or more"),
    "train_video_qa --config {recipe} --run-dir {tmp}/x --image {tmp}/empty": ("empty", "expected an adapter folder"),
    "train_video_qa --config {recipe} --run-dir {tmp}/x --cache-gb 0": ("0.0 GB", "more than 0"),
    "train_video_qa --config {recipe} --run-dir {tmp}/x --video.to-image-layers": ("without --image", "adapter folder"),
    "time_feature_cache --config {recipe} --run-dir {tmp}/x --epochs 1": ("--epochs 1", "expected 2 or more"),
    "time_feature_cache --config {recipe} --run-dir {tmp}/x --data.clips 3": ("3 clips in steps of 2", "expected"),
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_line_and_status_2(
    cli: Cli, tmp_path: Path, recipe: Path, adapter: Path, adapter_folder: Path, command: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.mp4").write_text("no video")
    places = {"tmp": tmp_path, "recipe": recipe, "adapter": adapter, "images": adapter_folder}
    ended = cli(*(word.format(**places) for word in command.split()))
    assert ended.status == 2, ended
    assert ended.err.count("\n") == 1 and ended.err.startswith("error: "), ended
    assert all(word in ended.err for word in BAD[command]), ended.err


def test_answers_are_those_of_the_model(cli: Cli, tmp_path: Path, adapter: Path) -> None:
    a, b = clip_file(tmp_path / "a.mp4"), clip_file(tmp_path / "b.mp4", seed=1)
    picture().save(tmp_path / "p.png")
    flags = ["--question", "Who?", "--max-new-tokens", 6, "--device", "cpu", "--adapter", adapter]
    expected = tiny_video_model().chat(ask(picture(), a, b, "Who?"), max_new_tokens=6)
    ended = cli(
        "answer_video", a, b, "--images", tmp_path / "p.png", *flags, "--attention", tmp_path / "deep" / "s.png"
    )
    assert ended.status == 0 and ended.out.strip() == expected
    assert expected
    described = tiny_video_model().chat(ask(a, "All?"), max_new_tokens=96)
    expected = tiny_video_model().chat([{"role": "user", "content": f"{described}\nWho?"}], max_new_tokens=6)
    assert cli("answer_video", a, *flags, "--describe-with", "All?").out.strip() == expected
    with Image.open(tmp_path / "deep" / "s.png") as image:
        image.verify()


def test_training_writes_numbers_and_resumes(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    flags = ["--config", recipe, "--run-dir", tmp_path / "r", "--data.dev-count", 4]
    assert cli("train_video_qa", *flags).status == 0
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert {
        "accuracy",
        "accuracy_shuffled",
        "accuracy_middle_frame",
        "accuracy_reversed",
        "accuracy_blank",
    } <= metrics.keys()
    again = cli("train_video_qa", *flags)
    assert again.status == 2 and "expected --resume" in again.err
    assert cli("train_video_qa", *flags, "--resume").status == 0


def test_the_feature_cache_is_timed_at_the_same_losses(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    ended = cli("time_feature_cache", "--config", recipe, "--run-dir", tmp_path / "t")
    assert ended.status == 0, ended
    metrics = json.loads((tmp_path / "t" / "metrics.json").read_text())
    assert metrics["losses_identical"] is True
    without, cached = metrics["samples_per_second_without"], metrics["samples_per_second_cached"]
    assert len(without) == len(cached) == 2 and min(without + cached) > 0
    assert metrics["speed_up_second_epoch"] == pytest.approx(cached[1] / without[1])
    assert "feature cache: 8 clips read, 4 computed" in ended.out


def test_evaluation_writes_the_score_and_every_control(
    cli: Cli, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wordnet(tmp_path / "wordnet")
    monkeypatch.setenv(PLACE, str(tmp_path / "wordnet"))
    flags = ["--adapter", adapter, "--count", 4, "--cards", 1, "--choice", "--max-new-tokens", 4, "--device", "cpu"]
    ended = cli("evaluate_video", *flags, "--run-dir", tmp_path / "e", "--describe-with", "All?")
    assert ended.status == 0, ended
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert {"accuracy", "accuracy_shuffled", "accuracy_reversed", "choice_accuracy"} <= metrics.keys()
    assert {"described_accuracy", "described_accuracy_middle_frame"} <= metrics.keys()
    assert {"wups_0.9", "wups_0.0_blank"} <= metrics.keys() and metrics["questions"] == 4
    assert "WUPS over WordNet 9.9" in (tmp_path / "e" / "report.html").read_text()


def test_the_demo_writes_every_number_and_a_page(cli: Cli, tmp_path: Path, recipe: Path) -> None:
    flags = ["--held-out", 8, "--cards", 2, "--data.inventory"]
    ended = cli("demo_video", "--config", recipe, "--run-dir", tmp_path / "d", *flags)
    assert ended.status == 0, ended
    metrics = json.loads((tmp_path / "d" / "metrics.json").read_text())
    controls = ("", "_shuffled", "_blank", "_middle_frame", "_reversed")
    names = {f"{score}{control}" for score in ("accuracy", "described_accuracy") for control in controls}
    assert names | {"train_seconds", "samples_per_second", "peak_memory_mb"} <= metrics.keys()
    page = (tmp_path / "d" / "report.html").read_text()
    assert "<svg" in page and page.count("data:image/jpeg") >= 2
