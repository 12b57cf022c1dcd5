"""One validator for files and flags: the same values, the same errors, one line each."""

import io
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from multimodal.config import dump, parse
from multimodal.errors import UserError
from multimodal.train import TrainConfig


def default_training() -> TrainConfig:
    return TrainConfig(steps=10, batch_size=2, learning_rates={"adapter": 1e-3, "encoder": 1e-4})


@dataclass(frozen=True, kw_only=True)
class Data:
    folder: Path
    """Where the pictures are."""
    limit: int | None = None
    shuffle: bool = True


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe."""

    data: Data
    train: TrainConfig = field(default_factory=default_training)
    sizes: tuple[int, ...] = (1, 2)
    mode: Literal["caption", "answer"] = "caption"
    name: str = "x"
    verbose: bool = False
    weights: dict[str, float]


FLAGS = ["--data.folder", "pics", "--weights", "a", "1"]


def write(tmp_path: Path, text: str, name: str = "recipe.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def error(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(Recipe, list(argv))
    assert "\n" not in str(caught.value)
    return str(caught.value)


CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({"train": {"steps": 7}}, ["--train.steps", "7"]),
    ({"train": {"learning_rates": {"encoder": 0}}}, ["--train.learning-rates.encoder", "0"]),
    ({"train": {"learning-rates": {"adapter": "1e-2"}}}, ["--train.learning-rates.adapter", "1e-2"]),
    ({"train": {"betas": [0.8, 0.9]}}, ["--train.betas", "0.8", "0.9"]),
    ({"train": {"max_minutes": 3}}, ["--train.max-minutes", "3"]),
    ({"train": {"max_minutes": None, "tensorboard": False}}, ["--train.no-tensorboard"]),
    ({"data": {"limit": 5, "shuffle": False}}, ["--data.limit", "5", "--data.no-shuffle"]),
    ({"verbose": True}, ["--verbose"]),
    ({"verbose": False, "sizes": []}, ["--no-verbose", "--sizes"]),
    ({"sizes": [4, 5, 6], "mode": "answer"}, ["--sizes", "4", "5", "6", "--mode", "answer"]),
    ({"name": "-dash and space"}, ["--name=-dash and space"]),
    ({"weights": {"b": 2.5, "c": 3}}, ["--weights", "b", "2.5", "c", "3"]),
]


@pytest.mark.parametrize(("content", "flags"), CASES)
def test_a_file_equals_its_flags(tmp_path: Path, content: dict[str, Any], flags: list[str]) -> None:
    file = write(tmp_path, yaml.safe_dump(content))
    by_flags = parse(Recipe, FLAGS + flags)
    base = FLAGS[:2] if "weights" in content else FLAGS
    assert parse(Recipe, ["--config", file, *base]) == by_flags
    assert parse(Recipe, ["--config", write(tmp_path, dump(by_flags), "dumped.yaml")]) == by_flags


def test_flags_win_over_files_and_later_files_over_earlier(tmp_path: Path) -> None:
    first = write(tmp_path, "train: {steps: 7, seed: 7, keep: 7}\nverbose: true", "a.yaml")
    second = write(tmp_path, "train: {seed: 8, keep: 8}", "b.yaml")
    flags = ["--train.keep", "9", "--no-verbose", f"--config={second}"]
    recipe = parse(Recipe, [*FLAGS, "--config", first, *flags])
    assert (recipe.train.steps, recipe.train.seed, recipe.train.keep, recipe.verbose) == (7, 8, 9, False)


@pytest.mark.parametrize(
    ("text", "flags", "wanted"),
    [
        ("train: {stepz: 3}", ["--train.stepz=3"], "train.steps"),
        ("train: {steps: many}", ["--train.steps=many"], "--train.steps"),
        ("train: {steps: 0}", ["--train.steps=0"], "--train.steps is 0: expected at least 1"),
        ("train: {betas: [0.1]}", ["--train.betas", "0.1"], "--train.betas"),
        ("train: {learning_rates: {decoder: 1}}", ["--train.learning-rates.decoder=1"], "adapter"),
        ("mode: sing", ["--mode=sing"], "Expected one of"),
        ("data: {limit: 1.5}", ["--data.limit=1.5"], "--data.limit"),
        ("colour: red", ["--colour=red"], "colour"),
    ],
)
def test_files_and_flags_fail_alike(tmp_path: Path, text: str, flags: list[str], wanted: str) -> None:
    file = write(tmp_path, text)
    from_file = error("--config", file, *FLAGS)
    assert wanted in from_file and from_file.startswith(file)
    from_flags = error(*FLAGS, *flags)
    assert wanted in from_flags and file not in from_flags


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("train: 3", "train is 3: expected a section"),
        ("verbose: maybe", "verbose is 'maybe': expected true or false"),
        ("verbose: null", "expected true or false"),
        ("name: [a, b]", "name is a list: expected a single value"),
        ("mode: {a: 1}", "mode is a mapping: expected a value"),
        ("train: {steps: [1, 2]}", "train.steps is a list"),
        ("- a\n- b", "holds a list"),
        ("a: {", "line 1"),
    ],
)
def test_a_file_of_the_wrong_shape(tmp_path: Path, text: str, wanted: str) -> None:
    file = write(tmp_path, text)
    assert wanted in error("--config", file, *FLAGS)
    assert file in error("--config", file, *FLAGS)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert error() == "missing --data.folder, --weights: expected a value"
    assert "absent.yaml" in error("--config", str(tmp_path / "absent.yaml"))
    assert "expected a YAML file" in error("--config")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_errors_are_the_same_whatever_the_terminal_can_show(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert error() == "missing --data.folder, --weights: expected a value"
    unknown = error(*FLAGS, "--train.stepz", "1")
    assert unknown.startswith("Unrecognized options: --train.stepz, 1: expected perhaps --train.")
    assert error(*FLAGS, "--no-data.shuffle").endswith("expected perhaps --data.shuffle")  # of two forms the first
    assert "\n" not in error(*FLAGS, "--mode", "sing") and "caption" in error(*FLAGS, "--mode", "sing")


def test_a_mapping_without_default_keys_is_open_in_files_and_flags(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Rates:
        rates: dict[str, float] = field(default_factory=dict)

    for written in (Rates({"adapter": 0.5, "gates": 1.0}), Rates()):
        assert parse(Rates, ["--config", write(tmp_path, dump(written))]) == written
    assert parse(Rates, ["--rates", "adapter", "0.5"]) == Rates({"adapter": 0.5})


def test_a_bad_flag_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "train: {steps: 5}")
    assert error("--config", file, *FLAGS, "--train.steps=0").startswith("--train.steps is 0")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert parse(Recipe, ["--config", write(tmp_path, "# nothing\n"), *FLAGS]) == parse(Recipe, FLAGS)


def test_help_tells_of_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Recipe, ["--help"], description="Bakes.")
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "Bakes." in shown and "--config FILE.yaml" in shown and "--train.steps" in shown
