"""A llama2.c checkpoint becomes a decoder on which captioning trains as on any other."""

from pathlib import Path

import pytest
import yaml

from multimodal.model import MultimodalModel
from tests.multimodal.llama2c_files import STORIES, real, write_checkpoint, write_tokenizer
from tests.scripts.conftest import Cli
from tests.tiny_models import ENCODER, RATES, ask, picture


@pytest.fixture(params=["made", pytest.param("real", marks=real)])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint and its tokenizer."""
    if request.param == "real":
        return STORIES / "stories260K.bin", STORIES / "tok512.bin"
    write_checkpoint(tmp_path / "model.bin", seq_len=128)
    return tmp_path / "model.bin", write_tokenizer(tmp_path / "tok.bin")


def test_captioning_trains_on_a_converted_decoder(
    cli: Cli, files: tuple[Path, Path], captions_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "decoder"
    converted = cli("convert_llama2c", "--checkpoint", files[0], "--tokenizer", files[1], "--out", folder)
    assert converted.status == 0 and str(folder) in converted.out, converted
    recipe = tmp_path / "recipe.yaml"
    train = {"steps": 2, "batch-size": 2, "learning-rates": RATES, "device": "cpu", "tensorboard": False}
    data = {"source": str(captions_folder), "dev-count": 0}
    recipe.write_text(yaml.safe_dump({"encoder": ENCODER, "data": data, "train": train}))
    run = tmp_path / "run"
    trained = cli("train_captioning", "--config", recipe, "--decoder", folder, "--run-dir", run)
    assert trained.status == 0, trained
    model = MultimodalModel.from_pretrained(run / "adapter", device="cpu")
    assert model.tokenizer.chat_template is None and model.decoder_name == str(folder)
    image = picture()
    first, second = (model.sample(ask(image, "Describe."), answer) for answer in ("the fox", "see the dog"))
    assert model.tokenizer.decode(first.turns[0].answer, skip_special_tokens=True) == "the fox"
    assert isinstance(model.chat(ask(image, "Describe."), max_new_tokens=3), str)
    assert first.turns[0].prompt == second.turns[0].prompt


def test_a_spoilt_checkpoint_is_one_line_and_status_2(cli: Cli, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model.bin")
    (tmp_path / "model.bin").write_bytes((tmp_path / "model.bin").read_bytes()[:-40])
    flags = ["--checkpoint", tmp_path / "model.bin", "--tokenizer", write_tokenizer(tmp_path / "tok.bin")]
    ended = cli("convert_llama2c", *flags, "--out", tmp_path / "out")
    assert ended.status == 2 and ended.err.count("\n") == 1 and "model.bin" in ended.err and ended.out == ""
    gone = cli("convert_llama2c", "--checkpoint", tmp_path / "no.bin", *flags[2:], "--out", tmp_path / "out")
    assert gone.status == 2 and "no.bin: no such file" in gone.err and not (tmp_path / "out").exists()
