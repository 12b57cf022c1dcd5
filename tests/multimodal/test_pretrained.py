"""Decoders from folders: what loads, and one clear line for what does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from multimodal.errors import UserError
from multimodal.pretrained import (
    builtin_folder,
    decoder_path,
    encoder_folder,
    find_decoder,
    load_decoder,
    quiet_transformers,
    read_decoder,
    write_decoder,
)
from tests.multimodal.tiny_decoders import tiny_decoder
from tests.multimodal.tiny_tokenizers import builtin_tokenizer
from tests.tiny_models import decoder_for

CPU = torch.device("cpu")


def test_a_folder_is_loaded_frozen_with_its_tokenizer(decoder_folder: Path) -> None:
    decoder, tokenizer = load_decoder(str(decoder_folder), dtype=torch.float32, device=CPU)
    expected = decoder_for(builtin_tokenizer())
    assert all(torch.equal(p, q) for p, q in zip(decoder.lm.parameters(), expected.parameters(), strict=True))
    assert not decoder.lm.training and not any(p.requires_grad for p in decoder.lm.parameters())
    text = "The fox saw a dog."
    assert tokenizer.encode(text) == builtin_tokenizer().encode(text)
    assert tokenizer.chat_template == builtin_tokenizer().chat_template


def test_the_dtype_is_that_asked_for_and_the_hash_follows_the_weights(decoder_folder: Path) -> None:
    half, _ = load_decoder(str(decoder_folder), dtype=torch.bfloat16, device=CPU)
    assert half.lm.dtype == torch.bfloat16
    hashes = {load_decoder(str(decoder_folder), dtype=torch.float32, device=CPU)[0].sha256() for _ in range(2)}
    assert len(hashes) == 1 and half.sha256() not in hashes


def test_tables_that_older_versions_wrote_too_are_no_unknown_tensors(decoder_folder: Path, tmp_path: Path) -> None:
    """Llama 2 as it was published has those of its rotations."""
    folder = Path(shutil.copytree(decoder_folder, tmp_path / "decoder"))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    loaded, _ = load_decoder(str(folder), dtype=torch.float32, device=CPU)
    assert loaded.sha256() == load_decoder(str(decoder_folder), dtype=torch.float32, device=CPU)[0].sha256()


def test_builtin_is_beside_the_code() -> None:
    import multimodal

    assert Path(decoder_path("builtin")).is_relative_to(Path(multimodal.__path__[0]))
    assert decoder_path("some/folder") == find_decoder("some/folder") == "some/folder", "a name of the hub"


def test_builtin_names_the_encoders_that_ship_and_all_weights_fit_into_16_mb(tmp_path: Path) -> None:
    parts = ("decoder", "image_encoder", "speech_encoder")
    weights = [file for part in parts for file in builtin_folder(part).glob("*.safetensors")]
    assert len(weights) == len(parts) and sum(file.stat().st_size for file in weights) < 16e6
    for part in parts[1:]:
        assert encoder_folder(Path("builtin"), part) == builtin_folder(part)
        assert encoder_folder(tmp_path, part) == tmp_path


@pytest.mark.parametrize("place", ["file", "gone", "{}/gone", "./gone", "a/b/c"])
def test_a_path_is_never_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    name = str(tmp_path / place) if place in ("file", "gone") else place.format(tmp_path)
    with pytest.raises(UserError, match=f"^decoder {name}: no such folder; expected a model folder of transformers$"):
        find_decoder(name)


def truncate(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def drop_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def spoil_config(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def other_width(folder: Path) -> None:
    spoil_config(folder, intermediate_size=96)


def a_layer_less(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": config["num_hidden_layers"] - 1}))


def bring_code(folder: Path) -> None:
    """A model family of its own, in a file beside the weights."""
    (folder / "code.py").write_text(f"open({str(folder / 'was run')!r}, 'w')")
    own = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (no_tokenizer, r"no usable tokenizer .*; expected its files beside the weights"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "no usable tokenizer"),
    "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json in that folder; expected"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded .*config"),
    "unknown family": (lambda f: (f / "config.json").write_text('{"model_type": "nope"}'), "cannot be loaded .*nope"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded .*model.safetensors"),
    "truncated weights": (lambda f: truncate(f / "model.safetensors"), "cannot be loaded"),
    "a pickle": (pickle_weights, r"a pickle \(pytorch_model\.bin\).*; expected safetensors \(.*AutoModelForCausalLM"),
    "code": (bring_code, "cannot be loaded .*"),
    "a tensor less": (drop_a_tensor, r"weights do not fit its config\.json: missing model\.layers\.1\.mlp\.up_proj"),
    "nonsense": (lambda f: spoil_config(f, hidden_size="wide"), "cannot be loaded .*hidden_size"),
    "no heads": (lambda f: spoil_config(f, num_attention_heads=0), "cannot be loaded "),
    "no such rotation": (lambda f: spoil_config(f, rope_parameters={"rope_type": "nope"}), "cannot be loaded .*nope"),
    "config of a list": (lambda f: (f / "config.json").write_text("[]"), "cannot be loaded "),
    "a layer less": (a_layer_less, r"do not fit its config\.json: unknown model\.layers\.3\.[^;]*; "),
    "other sizes": (other_width, r"do not fit its config.*: (model[^;]* \[.*\] for \[.*\]; ){9}[^;]* and \d+ more$"),
    "gone": (shutil.rmtree, "no such folder; expected a model folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(
    decoder_folder: Path, tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(decoder_folder, tmp_path / "decoder"))
    spoil, expected = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(UserError, match=expected) as error:
        load_decoder(str(folder), dtype=torch.float32, device=CPU)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "was run").exists() and capfd.readouterr() == ("", "")


def test_loading_writes_nothing_to_the_terminal(decoder_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_decoder(str(decoder_folder), dtype=torch.float32, device=CPU)
    assert capfd.readouterr() == ("", "")


def test_what_is_written_is_read_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lm = decoder_for(builtin_tokenizer())
    write_decoder(lm, builtin_tokenizer(), tmp_path / "new" / "decoder")
    assert capfd.readouterr() == ("", "")
    again, tokenizer = read_decoder(str(tmp_path / "new" / "decoder"), dtype=torch.float32)
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), lm.parameters(), strict=True))
    assert tokenizer.get_vocab() == builtin_tokenizer().get_vocab()


def test_a_tied_head_is_no_missing_tensor(decoder_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(decoder_folder, tmp_path / "decoder"))
    tiny_decoder(vocab_size=len(builtin_tokenizer()), tie_word_embeddings=True).save_pretrained(folder)
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    decoder, _ = load_decoder(str(folder), dtype=torch.float32, device=CPU)
    assert decoder.lm.lm_head.weight is decoder.lm.get_input_embeddings().weight


@pytest.mark.parametrize("silent", [False, True])
def test_quiet_means_the_bars_of_reading_and_not_those_of_downloads(silent: bool) -> None:
    was = are_progress_bars_disabled()
    (disable_progress_bars if silent else enable_progress_bars)()
    before = logging.is_progress_bar_enabled()
    with quiet_transformers():
        assert not logging.is_progress_bar_enabled() and are_progress_bars_disabled() == silent
    assert logging.is_progress_bar_enabled() == before and are_progress_bars_disabled() == silent
    (disable_progress_bars if was else enable_progress_bars)()
