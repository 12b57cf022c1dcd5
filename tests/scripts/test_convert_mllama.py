"""`convert_mllama` as people run it."""

from pathlib import Path

import yaml
from safetensors.torch import load_file
from transformers import MllamaForConditionalGeneration

from multimodal.weight_folder import WEIGHTS
from tests.scripts.conftest import Cli
from tests.tiny_models import RATES
from tests.vision.tiny_mllama import save_released


def test_there_and_back(cli: Cli, tmp_path: Path) -> None:
    source = save_released(tmp_path / "source")
    there = cli("convert_mllama", "--to-graft", source, "--output", tmp_path / "graft")
    assert there.status == 0 and "adapter" in there.out, there.err
    back = cli("convert_mllama", "--from-graft", tmp_path / "graft" / "adapter", "--output", tmp_path / "back")
    assert back.status == 0, back.err
    before, after = load_file(source / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    assert before.keys() == after.keys() and all((tensor == after[name]).all() for name, tensor in before.items())


def test_trained_further_and_written_again(cli: Cli, captions_folder: Path, tmp_path: Path) -> None:
    """What README shows: only the image parts have moved, and transformers loads them."""
    source = save_released(tmp_path / "source")
    assert cli("convert_mllama", "--to-graft", source, "--output", tmp_path / "graft").status == 0
    train = {"steps": 2, "batch-size": 2, "learning-rates": RATES, "device": "cpu", "tensorboard": False}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"data": {"source": str(captions_folder), "dev-count": 0}, "train": train}))
    flags = ["--config", recipe, "--start", tmp_path / "graft" / "adapter", "--run-dir", tmp_path / "run"]
    trained = cli("train_captioning", *flags)
    assert trained.status == 0, trained.err
    back = cli("convert_mllama", "--from-graft", tmp_path / "run" / "adapter", "--output", tmp_path / "back")
    assert back.status == 0, back.err
    before, after = load_file(source / WEIGHTS), load_file(tmp_path / "back" / WEIGHTS)
    moved = {name for name, tensor in before.items() if not (tensor == after[name]).all()}
    assert before.keys() == after.keys()
    assert {name.split(".")[0] for name in moved} == {"vision_model", "multi_modal_projector", "language_model"}
    of_decoder = {name for name in moved if name.startswith("language_model.")} - {
        "language_model.model.embed_tokens.weight"
    }
    assert of_decoder and {name.split(".")[3] for name in of_decoder} == {"1", "4"}, "cross-attention layers alone"
    found = MllamaForConditionalGeneration.from_pretrained(tmp_path / "back", output_loading_info=True)[1]
    assert not found["missing_keys"] and not found["unexpected_keys"] and not found["mismatched_keys"]


def test_bad_input_is_one_line_and_nothing_remains(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    neither = cli("convert_mllama", "--output", tmp_path / "out")
    missing = cli("convert_mllama", "--to-graft", tmp_path / "source", "--output", tmp_path / "out")
    no_adapter = cli("convert_mllama", "--from-graft", tmp_path / "source", "--output", tmp_path / "out")
    full = cli("convert_mllama", "--to-graft", tmp_path / "source", "--output", tmp_path)
    typo = cli("convert_mllama", "--no-such-flag", "1")
    for ended, said in (
        (neither, "expected one of them"),
        (missing, "no config.json"),
        (no_adapter, "expected an adapter folder"),
        (full, "expected a new folder"),
        (typo, "--no-such-flag"),
    ):
        assert ended.status == 2 and ended.err.count("\n") == 1 and said in ended.err, ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    helped = cli("convert_mllama", "--help")
    assert helped.status == 0 and "python -m scripts.convert_mllama" in helped.out
