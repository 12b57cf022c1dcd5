"""The decoder's pre-training script on a little text: what it writes, and what it refuses."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaForCausalLM

from scripts.pretrain_decoder import REPEAT_ENGLISH
from tests.scripts.conftest import Cli

TEXT = "\n\n".join(
    f"Once there was a fox named number {i}. It saw the old house by the river. " * 30 for i in range(60)
)
SIZES = [
    "--shape.layers",
    "2",
    "--shape.width",
    "32",
    "--shape.heads",
    "2",
    "--shape.kv-heads",
    "1",
    "--shape.ffn",
    "48",
    "--vocabulary",
    "320",
]
SHORT = [
    "--train.steps",
    "2",
    "--train.batch-size",
    "2",
    "--train.learning-rates",
    "decoder",
    "1e-3",
    "--context",
    "64",
    "--held-out",
    "5",
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "books.txt"
    file.write_text(TEXT)
    return file


def test_writes_a_decoder_with_its_measurements(cli: Cli, text: Path, tmp_path: Path, captions_folder: Path) -> None:
    flags = ["--text", str(text), "--run-dir", str(tmp_path / "run"), *SHORT]
    assert cli("pretrain_decoder", *flags, *SIZES).status == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["prose_perplexity"] > 1
    names = ("copy_exact", "copy_held_exact", "digits_held_exact", "foreign_held_exact", "scene_question_accuracy")
    assert all(0 <= metrics[name] <= 1 for name in names)
    folder = tmp_path / "run" / "decoder"
    lm, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert lm.config.num_key_value_heads < lm.config.num_attention_heads
    assert str(lm.dtype) == "torch.bfloat16"
    chat = [{"role": "user", "content": f"{REPEAT_ENGLISH} a fox"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False).endswith(f"<|user|>{REPEAT_ENGLISH} a fox")

    # Go on from it, with captions as text.
    more = [
        "--start",
        str(folder),
        "--captions",
        str(captions_folder),
        "--weights",
        "0",
        "0",
        "0.4",
        "0.4",
        "0.1",
        "0.1",
    ]
    flags = ["--text", str(text), "--run-dir", str(tmp_path / "more"), *SHORT]
    assert cli("pretrain_decoder", *flags, *more).status == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "more" / "decoder")) == len(tokenizer)
    assert json.loads((tmp_path / "more" / "metrics.json").read_text())["caption_perplexity"] > 1
    assert "unseen captions" in (tmp_path / "more" / "decoder" / "README.md").read_text()

    # And once more, with a tokenizer of another size.
    other = ["--start", str(folder), "--new-tokenizer", "--vocabulary", "300"]
    flags = ["--text", str(text), "--run-dir", str(tmp_path / "other"), *SHORT]
    assert cli("pretrain_decoder", *flags, *other).status == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "other" / "decoder")) == 300


def test_captions_without_a_dev_split_are_learnt_and_not_measured(
    cli: Cli, text: Path, tmp_path: Path, captions_folder: Path
) -> None:
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "images").symlink_to(captions_folder / "images")
    (tmp_path / "captions" / "train.tsv").write_text((captions_folder / "train.tsv").read_text())
    flags = ["--text", str(text), "--run-dir", str(tmp_path / "run"), "--captions", str(tmp_path / "captions")]
    done = cli("pretrain_decoder", *flags, "--shares.captions", "9", *SHORT, *SIZES)
    assert done.status == 0 and "unseen captions are not measured" in done.out
    assert "caption_perplexity" not in json.loads((tmp_path / "run" / "metrics.json").read_text())


def test_text_that_is_not_there_is_one_line(cli: Cli, tmp_path: Path) -> None:
    flags = ["--text", str(tmp_path / "none.txt"), "--run-dir", str(tmp_path / "run"), *SHORT, *SIZES]
    done = cli("pretrain_decoder", *flags)
    assert done.status == 2
    assert len(done.err.strip().splitlines()) == 1
    assert "none.txt" in done.err
