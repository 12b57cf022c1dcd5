"""The scripts as people run them: exit status, one clear line for bad input, files written, kill and resume."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import scripts
from multimodal.model import MultimodalModel
from multimodal.train import loop
from scripts import (
    answer_video,
    caption,
    convert_llama2c,
    demo,
    demo_video,
    evaluate,
    evaluate_video,
    pretrain_lip_encoder,
    train_captioning,
    train_video_qa,
)
from tests.multimodal.test_pretrained import no_tokenizer
from tests.scripts.conftest import Cli
from tests.tiny_models import ENCODER, RATES, save_decoder
from vision.caption_pictures import caption_pictures

ROOT = Path(scripts.__path__[0]).parent
SCRIPTS: dict[str, Any] = {
    m.__name__.split(".")[1]: m
    for m in (
        answer_video,
        caption,
        convert_llama2c,
        demo,
        demo_video,
        evaluate,
        evaluate_video,
        pretrain_lip_encoder,
        train_captioning,
        train_video_qa,
    )
}


def new_process(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Path, captions_folder: Path) -> Path:
    """A YAML file with everything that `train_captioning` and `demo` need, on tiny sizes and with random layers."""
    settings = {
        "decoder": str(decoder_folder),
        "encoder": {**ENCODER, "drop_path": 0.2},
        "adapter": {"dropout": 0.1},
        "data": {"source": str(captions_folder), "dev-count": 0, "captions": 2},
        "train": {
            "steps": 4,
            "batch-size": 2,
            "learning-rates": RATES,
            "save-every": 2,
            "device": "cpu",
            "tensorboard": False,
        },
        "anneal": {"steps": 4, "tile-size": 24, "learning-rates": {"encoder": 0.0002}},
    }
    file = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


# ---- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_typos(cli: Cli, script: str) -> None:
    helped = cli(script, "--help")
    assert helped.status == 0 and "usage" in helped.out.lower() and f"python -m scripts.{script}" in helped.out
    typo = cli(script, "--no-such-flag", "1")
    assert typo.status == 2 and typo.err.count("\n") == 1 and "--no-such-flag" in typo.err


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory,
    decoder_folder: Path,
    adapter_folder: Path,
    captions_folder: Path,
    recipe: Path,
) -> dict[str, Path]:
    """Names that the arguments below use, good and bad."""
    folder = tmp_path_factory.mktemp("places")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("no picture")
    (folder / "noadapter").mkdir()
    half = Path(shutil.copytree(adapter_folder, folder / "half"))
    (half / "adapter.safetensors").write_bytes(b"half")
    bare = Path(shutil.copytree(decoder_folder, folder / "bare"))
    no_tokenizer(bare)
    return {
        "tmp": folder,
        "adapter": adapter_folder,
        "good": captions_folder / "images" / "0.png",
        "other": save_decoder(folder / "other", seed=1),
        "captions": captions_folder,
        "recipe": recipe,
    }


BAD: dict[str, tuple[str, str]] = {
    "caption --adapter {adapter} {tmp}/none.png": ("none.png", "expected a picture file"),
    "caption --adapter {adapter} {tmp}/notes.txt": ("notes.txt", "not a picture"),
    "caption --adapter {adapter} {tmp}/empty": ("empty", "folder with pictures"),
    "caption --adapter {adapter}": ("no picture given", "expected"),
    "caption {good}": ("--adapter", "expected a value"),
    "caption {good} --adapter {tmp}/gone": ("gone", "expected an adapter folder"),
    "caption {good} --adapter {tmp}/noadapter": ("noadapter", "expected an adapter folder"),
    "caption {good} --adapter {tmp}/half": ("adapter.safetensors", "cannot be read"),
    "caption {good} --adapter {adapter} --decoder {other}": ("was trained on decoder", "--force-decoder"),
    "caption {good} --adapter {adapter} --decoder {tmp}/bare": ("bare", "no usable tokenizer"),
    "caption {good} --adapter {adapter} --beams many": ("--beams", "many"),
    "caption {good} --adapter {adapter} --beams 0": ("--beams 0", "expected 1 or more"),
    "caption {good} --adapter {adapter} --max-new-tokens 0": ("--max-new-tokens 0", "expected 1 or more"),
    "caption {good} --adapter {adapter} --batch-size 0": ("--batch-size 0", "expected 1 or more"),
    "caption {good} --adapter {adapter} --sample --temperature 0": ("--temperature 0", "expected more than 0"),
    "caption {good} --adapter {adapter} --sample --top-p -1": ("--top-p -1", "at most 1"),
    "caption {good} {good} --adapter {adapter} --prompt <|image|><|image|>": ("2", "1"),
    "evaluate --adapter {adapter} --run-dir {tmp}/x --cards -1": ("--cards -1", "expected 0 or more"),
    "evaluate --adapter {adapter} --run-dir {tmp}/x --scene-size 0": ("--scene-size 0", "expected 1 or more"),
    "train_captioning --config {recipe} --run-dir {tmp}/x --data.captions 0": ("--data.captions 0", "1 or more"),
    "train_captioning --config {recipe} --run-dir {tmp}/x --data.dev-count -1": ("--data.dev-count -1", "0 or more"),
    "demo --config {recipe} --run-dir {tmp}/x --held-out 1": ("--held-out 1", "expected 2 or more"),
    "evaluate --adapter {tmp}/gone --run-dir {tmp}/x": ("gone", "expected an adapter folder"),
    "evaluate --adapter {adapter} --run-dir {tmp}/x --source {tmp}/empty": ("empty", "expected pictures"),
    "evaluate --adapter {adapter} --run-dir {tmp}/x --source {captions} --columns.image photo": ("'photo'", "image"),
    "train_captioning --config {tmp}/none.yaml": ("none.yaml", "expected a YAML file"),
    "train_captioning --config {recipe}": ("--run-dir", "expected a value"),
    "train_captioning --config {recipe} --run-dir {tmp}/x --data.source {tmp}/empty": ("empty", "captions table"),
    "train_captioning --config {recipe} --run-dir {tmp}/x --data.source {tmp}/no.tsv": (
        "no.tsv",
        "expected a captions",
    ),
    "train_captioning --config {recipe} --run-dir {tmp}/x --decoder {tmp}/bare": ("bare", "no usable tokenizer"),
    "train_captioning --config {recipe} --run-dir {tmp}/x --train.batch-size 0": ("batch-size", "at least 1"),
    "train_captioning --config {recipe} --run-dir {tmp}/x --encoder.heads 3": ("width 16", "3 heads"),
    "train_captioning --config {recipe} --run-dir {tmp}/x --adapter.kv-heads 3": ("3 key/value heads", "expected"),
    "train_captioning --config {recipe} --run-dir {tmp}/x --encoder.weights {tmp}/empty": ("empty", "not found"),
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_line_and_status_2(cli: Cli, places: dict[str, Path], command: str) -> None:
    ended = cli(*(word.format(**places) for word in command.split()))
    assert ended.status == 2, ended
    assert ended.err.count("\n") == 1 and ended.err.startswith("error: ") and ended.out == "", ended
    assert all(word in ended.err for word in BAD[command]), ended.err
    assert not (places["tmp"] / "x").exists()


def test_force_decoder_takes_the_other_one(cli: Cli, places: dict[str, Path]) -> None:
    at, good = places["adapter"], places["good"]
    forced = cli("caption", good, "--adapter", at, "--decoder", places["other"], "--force-decoder", "--beams", 1)
    assert forced.status == 0 and json.loads(forced.out)["image"] == str(good)


# ---- caption ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path, captions_folder: Path) -> Path:
    """Three good pictures and a broken one."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("0.png", "1.png", "4.png"):
        shutil.copy(captions_folder / "images" / name, folder)
    (folder / "3.jpg").write_bytes(b"\xff\xd8\xff and no more")
    return folder


def test_what_was_said_before_an_interruption_is_kept(
    cli: Cli, pictures: Path, adapter_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[tuple[int, str]]:
        yield 0, "a fox"
        raise KeyboardInterrupt

    monkeypatch.setattr("scripts.caption.caption_pictures", interrupted)
    ended = cli("caption", pictures, "--adapter", adapter_folder, "--output", tmp_path / "said.jsonl")
    assert ended.status == 130
    assert [json.loads(line)["caption"] for line in (tmp_path / "said.jsonl").read_text().splitlines()] == ["a fox"]


def test_a_new_process_says_what_this_one_says_and_skips_what_is_broken(
    cli: Cli, pictures: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    flags = ["--adapter", adapter_folder, "--beams", 2, "--max-new-tokens", 6, "--device", "cpu"]
    ended = new_process("-m", "scripts.caption", pictures, *flags)
    assert ended.returncode == 0, ended.stderr
    said = [json.loads(line) for line in ended.stdout.splitlines()]
    model = MultimodalModel.from_pretrained(adapter_folder, device="cpu")
    good = sorted(pictures.glob("*.png"))
    expected = dict(caption_pictures(model, good, num_beams=2, max_new_tokens=6))
    assert said == [{"image": str(p), "caption": expected[i]} for i, p in enumerate(good)]
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("skipped: ") and "3.jpg" in ended.stderr

    written = cli("caption", pictures, *flags, "--output", tmp_path / "deep" / "o.jsonl", "--attention", tmp_path / "a")
    assert written.status == 0 and written.out == ""
    assert (tmp_path / "deep" / "o.jsonl").read_text() == ended.stdout
    drawn = sorted((tmp_path / "a").iterdir())
    spoken = [i for i, p in enumerate(sorted(pictures.iterdir())) if p.suffix == ".png" and expected[good.index(p)]]
    assert spoken and [int(p.name.partition("-")[0]) for p in drawn] == spoken
    for path in drawn:
        with Image.open(path) as image:
            image.verify()


def test_sampling_follows_the_seed(cli: Cli, pictures: Path, adapter_folder: Path) -> None:
    def said(seed: int) -> str:
        flags = ["--sample", "--temperature", 2.0, "--top-p", 1.0, "--max-new-tokens", 6, "--seed", seed]
        return cli("caption", pictures / "0.png", "--adapter", adapter_folder, "--device", "cpu", *flags).out

    assert said(1) == said(1) != said(2)


def test_nothing_but_broken_pictures_is_status_2(cli: Cli, tmp_path: Path, adapter_folder: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no")
    ended = cli("caption", tmp_path, "--adapter", adapter_folder)
    lines = ended.err.splitlines()
    assert ended.status == 2 and ended.out == "" and len(lines) == 3
    assert all(line.startswith("skipped: ") for line in lines[:2]) and "none of 2 pictures" in lines[2]


# ---- evaluate and demo --------------------------------------------------------------------------------------------


def test_evaluate_writes_the_score_and_both_controls(
    cli: Cli, captions_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    flags = ["--adapter", adapter_folder, "--source", captions_folder, "--beams", 2, "--max-new-tokens", 6]
    ended = cli("evaluate", *flags, "--run-dir", tmp_path / "e", "--cards", 2, "--device", "cpu")
    assert ended.status == 0, ended
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    names = {f"{name}{control}" for name in ("cider_d", "bleu4") for control in ("", "_shuffled", "_blank")}
    assert names <= metrics.keys() and all(isinstance(metrics[name], float) for name in names)
    assert metrics["pictures"] == 3 and "cider_d" in ended.out
    lines = [json.loads(line) for line in (tmp_path / "e" / "captions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["0.png", "3.png", "5.png"] and all("text" in line for line in lines)
    page = (tmp_path / "e" / "report.html").read_text()
    assert sum(name in page for name in ("0.png", "3.png", "5.png")) == 2


def test_the_demo_writes_every_number(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    flags = ["--data.source", "scenes", "--data.scenes", 4, "--data.scene-size", 16, "--data.questions", 1]
    flags += ["--train.steps", 2, "--anneal.steps", 0, "--held-out", 4, "--cards", 1]
    ended = cli("demo", "--config", recipe, "--run-dir", tmp_path / "d", *flags)
    assert ended.status == 0, ended
    metrics = json.loads((tmp_path / "d" / "metrics.json").read_text())
    scores = {
        f"{name}{control}"
        for name in ("object_f1", "qa_accuracy", "qa_accuracy_described")
        for control in ("", "_shuffled", "_blank")
    }
    assert scores | {"train_seconds", "samples_per_second", "peak_memory_mb"} <= metrics.keys()
    assert metrics["text_logits_max_abs_diff"] == 0
    assert metrics["decoder_sha256_before"] == metrics["decoder_sha256_after"]
    assert "<svg" in (tmp_path / "d" / "report.html").read_text()
    again = cli("demo", "--config", recipe, "--run-dir", tmp_path / "d", *flags, "--resume")  # as `make demo` does
    assert again.status == 0, again
    assert all(json.loads((tmp_path / "d" / "metrics.json").read_text())[name] == metrics[name] for name in scores)


CONFIGS = ROOT / "scripts" / "configs"
RECIPES = {
    path.name: "train_video_qa" if "video" in settings else "train_captioning"
    for path in sorted(CONFIGS.glob("*.yaml"))
    if {"adapter", "video"} & (settings := yaml.safe_load(path.read_text())).keys() and "ctc" not in settings
} | {"demo.yaml": "demo", "demo_video.yaml": "demo_video"}


def test_the_video_demo_is_for_the_image_demos_adapter() -> None:
    image, clips = (yaml.safe_load((CONFIGS / name).read_text()) for name in ("demo.yaml", "demo_video.yaml"))
    assert clips["image"] == f"{image['run-dir']}/adapter" and clips["image-adapter"] == image["adapter"]
    assert clips["encoder"] | {"weights": "builtin"} == image["encoder"]
    assert clips["begin"] == "image"  # its layers are copies
    begun, copied = clips["video"]["adapter"], image["adapter"]
    assert all(begun.get(size) == copied.get(size) for size in ("heads", "kv-heads", "ffn"))


@pytest.mark.parametrize("name", RECIPES)
def test_shipped_recipes_are_understood(cli: Cli, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every setting in them exists; the first thing that a script does with them is stopped."""

    class Understood(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Understood

    monkeypatch.setattr(train_captioning, "train_captioning", stop)
    monkeypatch.setattr(train_video_qa, "train_video_qa", stop)
    monkeypatch.setattr(demo_video, "train_video_qa", stop)
    monkeypatch.setattr(demo, "train_captioning", stop)
    with pytest.raises(Understood):
        cli(RECIPES[name], "--config", CONFIGS / name, "--run-dir", tmp_path)


# ---- kill and resume ----------------------------------------------------------------------------------------------

# Runs the script, but kills it without warning in front of step 4, between two checkpoints.
KILLED = """
import os, runpy, signal
from multimodal.train import loop
step = loop._Run._step
def dying(self, data):
    if self.progress.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, data)
loop._Run._step = dying
runpy.run_module("scripts.train_captioning", run_name="__main__")
"""


def checkpoints(stage: Path) -> list[str]:
    return sorted(path.name for path in (stage / "checkpoints").iterdir())


def test_killed_and_interrupted_and_resumed_is_as_never_stopped(
    cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, weights = tmp_path / "run", Path("adapter") / "adapter.safetensors"
    assert cli("train_captioning", "--config", recipe, "--run-dir", tmp_path / "whole").status == 0

    killed = new_process("-c", KILLED, "--config", recipe, "--run-dir", run)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoints(run / "initial") == ["step-00000002"] and not (run / "adapter").exists()

    step = loop._Run._step

    def interrupted(self: Any, data: Any) -> Any:
        if self.run_dir.name == "anneal" and self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, data)

    monkeypatch.setattr(loop._Run, "_step", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background
    ended = cli("train_captioning", "--config", recipe, "--run-dir", run, "--resume")
    said = [line for line in ended.err.splitlines() if not line.startswith("step ")]
    assert ended.status == 130 and len(said) == 1 and "--resume" in said[0]
    assert checkpoints(run / "anneal") == ["step-00000002"] and not (run / "adapter").exists()
    monkeypatch.setattr(loop._Run, "_step", step)

    again = cli("train_captioning", "--config", recipe, "--run-dir", run)
    assert again.status == 2 and "expected --resume" in again.err
    assert cli("train_captioning", "--config", recipe, "--run-dir", run, "--resume").status == 0
    assert (run / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    for stage in ("initial", "anneal"):
        logs = [
            [json.loads(line)["loss"] for line in (base / stage / "log.jsonl").read_text().splitlines()]
            for base in (run, tmp_path / "whole")
        ]
        assert logs[0] == logs[1] and len(logs[0]) == 4
