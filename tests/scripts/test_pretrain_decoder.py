"""The decoder's pre-training script on a little text: what it writes, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import scripts
from multimodal.config import parse
from scripts.pretrain_decoder import QUESTIONS, REPEAT_ENGLISH, Config, Shares, keep_start
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
    names = ("copy_exact", "copy_held_exact", "digits_held_exact", "foreign_held_exact", *QUESTIONS)
    assert all(0 <= metrics[name] <= 1 for name in names)
    folder = tmp_path / "run" / "decoder"
    lm, tokenizer = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert lm.config.num_key_value_heads < lm.config.num_attention_heads
    assert str(lm.dtype) == "torch.bfloat16"
    chat = [{"role": "user", "content": f"{REPEAT_ENGLISH} a fox"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False).endswith(f"<|user|>{REPEAT_ENGLISH} a fox")

    # Go on from it, with captions as text.
    more = ["--start", str(folder), "--captions", str(captions_folder), "--shares.captions", "0.4"]
    flags = ["--text", str(text), "--run-dir", str(tmp_path / "more"), *SHORT]
    assert cli("pretrain_decoder", *flags, *more).status == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "more" / "decoder")) == len(tokenizer)
    assert json.loads((tmp_path / "more" / "metrics.json").read_text())["caption_perplexity"] > 1
    assert "unseen captions" in (tmp_path / "more" / "decoder" / "README.md").read_text()

    # And once more, with a tokenizer of another size, without other languages, and keeping a half of what it was.
    other = ["--start", str(folder), "--new-tokenizer", "--vocabulary", "300", "--shares.foreign", "0"]
    flags = ["--text", str(text), "--run-dir", str(tmp_path / "other"), *SHORT, "--keep-of-start", "0.5"]
    assert cli("pretrain_decoder", *flags, *other).status == 0
    assert len(AutoTokenizer.from_pretrained(tmp_path / "other" / "decoder")) == 300
    assert "foreign_held_exact" not in json.loads((tmp_path / "other" / "metrics.json").read_text())


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--new-tokenizer"], "expected --start"),
        (["--keep-of-start", "0.5"], "expected --start"),
        (["--start", "builtin", "--keep-of-start", "1"], "expected 0 to below 1"),
        (["--shares.captions", "1"], "expected --captions"),
        (["--shares.prose", "-1"], "expected 0 or more"),
    ],
)
def test_settings_that_contradict_each_other_are_one_line(
    cli: Cli, text: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    done = cli("pretrain_decoder", "--text", str(text), "--run-dir", str(tmp_path / "run"), *SHORT, *flags)
    assert done.status == 2 and message in done.err
    assert len(done.err.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_share_of_the_start_is_kept_and_its_embeddings() -> None:
    lm = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    before = {name: torch.zeros_like(weight) for name, weight in lm.named_parameters()}
    learnt = {name: weight.detach().clone() for name, weight in lm.named_parameters()}
    keep_start(lm, before, share=0.0)
    assert all(torch.equal(weight, learnt[name]) for name, weight in lm.named_parameters())
    keep_start(lm, before, share=0.25)
    for name, weight in lm.named_parameters():
        wanted = before[name] if "embed" in name else 0.75 * learnt[name]
        torch.testing.assert_close(weight.detach(), wanted)


@pytest.mark.parametrize("name", ["decoder.yaml", "flickr8k_decoder.yaml"])
def test_shipped_recipes_are_understood(name: str) -> None:
    recipe = str(Path(scripts.__path__[0]) / "configs" / name)
    flags = ["--config", recipe, "--text", "books.txt", "--captions", "pictures", "--run-dir", "run"]
    config = parse(Config, flags, description="")
    assert (config.start == "", config.shares == Shares()) == (
        (True, True) if name == "decoder.yaml" else (False, False)
    )
