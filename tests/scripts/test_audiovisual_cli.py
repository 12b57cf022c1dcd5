"""Sound and pictures together as people run it, on a few made clips and adapters that know nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from multimodal.data.grid_grammar import SLOTS
from multimodal.late_fusion import WEIGHTS
from multimodal.model import MultimodalModel
from scripts.evaluate_audiovisual import Config, load_model, read_filmed
from tests.multimodal.test_several_adapters import speech_model
from tests.scripts.conftest import Cli
from tests.speech.made_speech import tone
from tests.tiny_models import TILE, picture, tiny_video_model
from tests.vision.made_clips import TIMES, write_clip

SENTENCES = {
    "bbaf3s": "bin blue at f three soon",
    "lgbz9n": "lay green by z nine now",
    "prix0p": "place red in x zero please",
    "swwa7a": "set white with a seven again",
    "bwac1n": "bin white at c one now",
}
SYSTEMS = ("sound", "pictures", "both", "joint_prompt")
CONTROLS = ("sound_shuffled", "pictures_shuffled", "both_sound_shuffled", "both_pictures_shuffled")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GRID as published: two clips to choose the weight on and three that are reported, one of them broken."""
    folder = tmp_path_factory.mktemp("grid")
    (folder / "clips").mkdir()
    lines = ["id\tsplit\ttext"]
    for number, (name, sentence) in enumerate(SENTENCES.items()):
        lines.append(f"{name}\t{'dev' if number < 2 else 'test'}\t{sentence}")
        frames = [picture(TILE, TILE, seed=10 * number + i) for i in range(6)]
        track = tone(number, seconds=0.4, rate=16_000).numpy()
        write_clip(folder / "clips" / f"{name}.mp4", times=TIMES[:6], size=(TILE, TILE), pictures=frames, sound=track)
    (folder / "clips" / "sgbx2n.mp4").write_text("no clip")
    lines.append("sgbx2n\ttest\tset green by x two now")
    (folder / "transcripts.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Path) -> Path:
    model = speech_model(decoder_folder)
    with torch.no_grad():
        model.modalities["audio"].adapter.norm_out.weight.mul_(20)  # type: ignore[union-attr, operator]
    folder = tmp_path_factory.mktemp("speech") / "adapter"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("video") / "adapter"
    tiny_video_model(name=str(decoder_folder)).save_pretrained(folder)
    return folder


def metrics_of(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "metrics.json").read_text())


def test_help_and_typos(cli: Cli) -> None:
    helped = cli("evaluate_audiovisual", "--help")
    assert (
        helped.status == 0 and "late fusion" in helped.out and "chosen on the dev split" in " ".join(helped.out.split())
    )
    typo = cli("evaluate_audiovisual", "--no-such-flag", "1")
    assert typo.status == 2 and typo.err.count("\n") == 1 and "--no-such-flag" in typo.err


def test_every_number_is_written_and_printed(cli: Cli, tmp_path: Path, grid: Path, speech: Path, video: Path) -> None:
    flags = ("--source", grid, "--device", "cpu", "--max-new-tokens", 4)
    ended = cli("evaluate_audiovisual", "--adapter", speech, video, "--run-dir", tmp_path / "a", *flags)
    assert ended.status == 0, ended.err
    found = metrics_of(tmp_path / "a")
    numbers = ("words", "sentences", "wer", *SLOTS)
    assert {f"{system}_{number}" for system in (*SYSTEMS, *CONTROLS) for number in numbers} <= found.keys()
    assert found["clips"] == 3 and found["dev_clips"] == 2 and found["snr_db"] == 0, "the broken clip is left out"
    for system in (*SYSTEMS, *CONTROLS):
        assert found[f"{system}_wer"] == pytest.approx(1 - found[f"{system}_words"])
        assert found[f"{system}_words"] == pytest.approx(sum(found[f"{system}_{slot}"] for slot in SLOTS) / 6)
    by_weight = {float(weight): words for weight, words in found["dev_words_by_weight"].items()}
    assert tuple(by_weight) == WEIGHTS and by_weight[found["weight"]] == max(by_weight.values())
    lines = ended.out.splitlines()
    for system in (*SYSTEMS, *CONTROLS):
        (row,) = [line for line in lines if line[:23].strip() == system.replace("_", " ")]
        assert [float(cell) for cell in row[23:].split()] == pytest.approx(
            [found[f"{system}_{n}"] for n in ("words", "sentences", *SLOTS, "wer")], abs=5e-4
        )

    # One folder that holds both says the same.
    model = MultimodalModel.from_pretrained(video, device="cpu")
    model.load_adapter(speech)
    model.save_pretrained(tmp_path / "both")
    ended = cli("evaluate_audiovisual", "--adapter", tmp_path / "both", "--run-dir", tmp_path / "b", *flags)
    assert ended.status == 0 and metrics_of(tmp_path / "b") == found, ended.err


def test_noise_is_as_loud_as_asked_for_and_of_the_clip_and_the_seed(grid: Path, speech: Path, video: Path) -> None:
    settings: dict[str, Any] = {"adapter": (speech, video), "source": str(grid), "run_dir": grid, "device": "cpu"}
    model = load_model(Config(**settings))

    def sounds(**more: Any) -> list[torch.Tensor]:
        return [one.waveform for one in read_filmed(model, Config(**settings, **more), "test")]

    clean, noisy, again, other = sounds(snr_db=None), sounds(snr_db=-5.0), sounds(snr_db=-5.0, count=2), sounds(seed=1)
    assert len(clean) == 3 and len(again) == 2
    for waveform, one in zip(clean, noisy, strict=True):
        ratio = waveform.square().mean() / (one - waveform).square().mean()
        assert 10 * float(ratio.log10()) == pytest.approx(-5, abs=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(noisy, again, strict=False))
    noises = [one - waveform for some in (noisy, other) for one, waveform in zip(some, clean, strict=True)]
    same = [torch.corrcoef(torch.stack([a, b]))[0, 1] for i, a in enumerate(noises) for b in noises[:i]]
    assert max(map(abs, same)) < 0.2, "no two clips and no two seeds have the same noise"


BAD: dict[str, tuple[str, str]] = {
    "--adapter {speech} --source {grid} --run-dir {tmp}/x": ("no video parts", "expected audio and video"),
    "--adapter {video} --source {grid} --run-dir {tmp}/x": ("no audio parts", "expected audio and video"),
    "--adapter {video} {video} --source {grid} --run-dir {tmp}/x": ("the model has already", "unload_adapter"),
    "--adapter {speech} {video} --source {grid} --run-dir {tmp}/x --split dev": ("both dev", "on other clips"),
    "--adapter {speech} {video} --source {tmp}/none --run-dir {tmp}/x": ("none: no such", "expected a folder of clips"),
    "--adapter {speech} {video} --source {tmp}/other.tsv --run-dir {tmp}/x": ("no question of the kinds", "command"),
    "--adapter {speech} {video} --source {grid} --run-dir {tmp}/x --count 1": ("1 clips", "expected two or more"),
    "--adapter {speech} {video} --source {grid}": ("--run-dir", "expected a value"),
}


@pytest.mark.parametrize("command", BAD)
def test_bad_input_is_one_line_and_status_2(
    cli: Cli, tmp_path: Path, grid: Path, speech: Path, video: Path, command: str
) -> None:
    clip = grid / "clips" / "bbaf3s.mp4"
    (tmp_path / "other.tsv").write_text(f"video\tquestion\tanswer\tsplit\n{clip}\tWho?\tA fox.\tdev\n")
    places = {"tmp": tmp_path, "grid": grid, "speech": speech, "video": video}
    ended = cli("evaluate_audiovisual", *(word.format(**places) for word in command.split()))
    assert ended.status == 2 and ended.err.splitlines()[-1].startswith("error: "), ended
    assert all(word in ended.err.splitlines()[-1] for word in BAD[command]), ended.err
    assert not (tmp_path / "x").exists()
