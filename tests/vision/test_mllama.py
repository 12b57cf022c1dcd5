"""Llama 3.2 Vision folders: in and out to the bit, chat, and one line for each kind of damage."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import MllamaForConditionalGeneration, MllamaProcessor

from multimodal.errors import UserError
from multimodal.messages import encode_prompt
from multimodal.model import MultimodalModel
from multimodal.quantization import quantize_decoder
from multimodal.weight_folder import INDEX, WEIGHTS
from tests.tiny_models import ask, picture, tiny_model
from tests.vision.tiny_mllama import TAPS, TILE, edit_config, edit_tensors, processor, released, save_released
from vision.mllama import join_mllama, read_mllama, split_mllama, write_mllama
from vision.tile_layout import Numerics

PICTURE = picture(2 * TILE, TILE, seed=1)
CHAT = ask("Who?", PICTURE, "Describe the image.")


def read(folder: Path, **settings: Any) -> MultimodalModel:
    return read_mllama(folder, device="cpu", **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return save_released(tmp_path_factory.mktemp("mllama"))


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    return save_released(tmp_path / "spoilt")


def same_parameters(a: MultimodalModel, b: MultimodalModel) -> bool:
    ours, others = a.state_dict(), b.state_dict()
    return ours.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in ours.items())


# ---- round trip -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_read_and_written_it_is_the_same_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = released().to(dtype)
    source = save_released(tmp_path / "source", model)
    ours = read(source)
    assert ours.decoder.lm.dtype == dtype
    write_mllama(ours, tmp_path / "written")
    before, after = load_file(source / WEIGHTS), load_file(tmp_path / "written" / WEIGHTS)
    assert before.keys() == after.keys() and all(t.dtype == after[n].dtype for n, t in before.items())
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert same_parameters(read(tmp_path / "written"), ours)


def test_transformers_loads_what_is_written(folder: Path, tmp_path: Path) -> None:
    write_mllama(read(folder), tmp_path / "written", shard_bytes=20_000)
    assert len(list((tmp_path / "written").glob("*.safetensors"))) > 3
    theirs, info = MllamaForConditionalGeneration.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected = released().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in theirs.state_dict().items())
    settings = json.loads((tmp_path / "written" / "config.json").read_text())
    before = json.loads((folder / "config.json").read_text())
    assert settings.items() >= before.items()
    loaded = MllamaProcessor.from_pretrained(tmp_path / "written")
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]}]
    assert loaded.apply_chat_template(said) == processor().apply_chat_template(said)


def test_shards_and_either_prefix_give_the_same_model(folder: Path, tmp_path: Path) -> None:
    ours = read(folder)
    assert same_parameters(read(save_released(tmp_path / "new", hub_names=False)), ours)
    write_mllama(ours, tmp_path / "shards", shard_bytes=20_000)
    assert same_parameters(read(tmp_path / "shards"), ours)


def test_settings_as_they_were_written_in_2024(folder: Path, spoilt: Path) -> None:
    edit_config(spoilt, "", torch_dtype="float32", transformers_version="4.45.0.dev0")
    file = spoilt / "config.json"
    config = json.loads(file.read_text())
    text = config["text_config"]
    text["rope_theta"] = text.pop("rope_parameters")["rope_theta"]
    text["rope_scaling"] = None
    file.write_text(json.dumps(config))
    ours, expected = read(spoilt).decoder.lm, read(folder).decoder.lm
    ids = torch.arange(12)[None]
    assert torch.equal(ours(ids).logits, expected(ids).logits)


def test_strict_numerics_keep_all_but_the_rows_of_padding_tiles(folder: Path, tmp_path: Path) -> None:
    ours = read(folder, numerics="strict")
    write_mllama(ours, tmp_path / "written")
    assert same_parameters(read(tmp_path / "written", numerics="strict"), ours)
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "written" / WEIGHTS)
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed and all("tile" in name for name in changed)


@pytest.mark.parametrize("numerics", ["reference", "strict"])
def test_a_decoder_and_an_adapter_come_out(folder: Path, tmp_path: Path, numerics: Numerics) -> None:
    split_mllama(folder, tmp_path / "graft", numerics=numerics)
    model = MultimodalModel.from_pretrained(tmp_path / "graft" / "adapter", device="cpu")
    config = json.loads((tmp_path / "graft" / "adapter" / "adapter_config.json").read_text())
    assert config["modalities"]["image"]["encoder"]["numerics"] == numerics
    direct = read(folder, numerics=numerics)
    assert model.chat(CHAT, max_new_tokens=6) == direct.chat(CHAT, max_new_tokens=6)
    join_mllama(tmp_path / "graft" / "adapter", tmp_path / "joined")
    assert same_parameters(read(tmp_path / "joined", numerics=numerics), direct)
    if numerics == "reference":
        before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "joined" / WEIGHTS)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("place", ["after a kill", "on the hub"])
def test_an_adapter_is_joined_wherever_it_can_be_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    split_mllama(folder, tmp_path / "graft")
    adapter = tmp_path / "graft" / "adapter"
    if place == "after a kill":  # in the middle of the exchange of an older folder and a new one
        adapter.rename(adapter.with_name("adapter.old"))
    else:
        commit, cached = "0" * 40, tmp_path / "cache" / "models--me--vision"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text(commit)
        (cached / "snapshots").mkdir()
        adapter.rename(cached / "snapshots" / commit)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        adapter = Path("me/vision")
    join_mllama(adapter, tmp_path / "joined")
    assert same_parameters(read(tmp_path / "joined"), read(folder))


def test_an_adapter_trained_here_can_be_written(tmp_path: Path, adapter_folder: Path) -> None:
    model = MultimodalModel.from_pretrained(adapter_folder, device="cpu")
    with pytest.raises(UserError, match="cannot hold norms on taps"):
        write_mllama(model, tmp_path / "written")
    assert not list(tmp_path.iterdir())


# ---- chat -----------------------------------------------------------------------------------------------------------


def asked(*parts: Any) -> list[dict[str, Any]]:
    """A message as the released processor wants it."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("parts", "released_parts"),
    [
        (("Who?", PICTURE, "Describe it."), ("Who?", PICTURE, "Describe it.")),
        ((PICTURE, "A fox", PICTURE), (PICTURE, "A fox", PICTURE)),
        (("A <|image|> B", PICTURE), ("A ", PICTURE, " B")),  # spelt in the text, it is a part all the same
        (("Who saw whom?",), ("Who saw whom?",)),
    ],
)
def test_the_prompt_is_that_of_the_released_processor(folder: Path, parts: Any, released_parts: Any) -> None:
    text = processor().apply_chat_template(asked(*released_parts), add_generation_prompt=True)
    expected = processor().tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encode_prompt(ask(*parts), read(folder).vocabulary).ids == expected


def test_what_the_template_refuses_is_said(folder: Path) -> None:
    with pytest.raises(UserError, match="no system message with pictures"):
        encode_prompt([{"role": "system", "content": "Be brief."}, *CHAT], read(folder).vocabulary)


def test_the_placeholder_has_an_embedding_and_no_logit(folder: Path) -> None:
    ours = read(folder)
    token = ours.vocabulary.placeholder_ids["image"]
    table = released().model.language_model.embed_tokens.weight
    assert token == ours.decoder.vocab_size == len(table) - 8
    assert torch.equal(ours.decoder.embed(torch.tensor([[token, 3]]))[0], table[[token, 3]])
    assert ours.decoder.lm.lm_head.weight.shape[0] == token


def test_ends_of_turn_come_along(folder: Path, spoilt: Path) -> None:
    (spoilt / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 7], "pad_token_id": 4}))
    assert read(spoilt).decoder.lm.generation_config.eos_token_id == [4, 7]
    write_mllama(read(spoilt), spoilt.parent / "written")
    assert read(spoilt.parent / "written").decoder.lm.generation_config.eos_token_id == [4, 7]


def test_it_trains_further(folder: Path) -> None:
    ours = read(folder).train()
    batch = ours.collate([ours.sample(CHAT, "A fox.")])
    loss, count = ours.loss(batch)
    (loss / count).backward()
    image: Any = ours.modalities["image"]
    assert all(p.grad is not None for p in image.adapter.parameters())
    assert all(p.grad is None for p in ours.decoder.lm.parameters())
    assert image.encoder.layers[0].qkv.weight.grad.abs().sum() > 0


# ---- bad input ------------------------------------------------------------------------------------------------------


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(UserError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message and all(text in message for text in said), message


def test_missing_extra_and_misshapen_tensors_are_all_named(spoilt: Path) -> None:
    gone, bent = "language_model.lm_head.weight", "vision_model.class_embedding"
    edit_tensors(spoilt, lambda t: (t.pop(gone), t.update({bent: torch.zeros(3), "vision_model.more": torch.zeros(1)})))
    refused(
        spoilt, "missing lm_head.weight", "model.vision_model.class_embedding [3] for [16]", "unknown model.vision_m"
    )


def test_of_many_wrong_tensors_ten_are_named(spoilt: Path) -> None:
    edit_tensors(spoilt, lambda t: [t.pop(name) for name in list(t) if ".mlp." in name])
    with pytest.raises(UserError) as caught:
        read(spoilt)
    assert str(caught.value).count("missing") == 10 and "more" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "said"),
    [
        ("text_config", {"intermediate_size": 64}, "[48, 32] for [64, 32]"),
        ("text_config", {"num_hidden_layers": 7}, "missing model.language_model.layers.6"),
        ("text_config", {"num_hidden_layers": 5}, "a self-attention layer after each"),
        ("text_config", {"cross_attention_layers": [1, 2]}, "a self-attention layer after each"),
        ("text_config", {"hidden_act": "gelu"}, "hidden_act gelu; expected silu"),
        ("text_config", {"vocab_size": 7}, "image_token_index"),
        ("vision_config", {"vision_output_dim": 64}, "vision_output_dim 64; expected 48"),
        ("vision_config", {"intermediate_layers_indices": [0, 3]}, "rising numbers from 1 to 3"),
        ("vision_config", {"intermediate_layers_indices": [1, 9]}, "rising numbers from 1 to 3"),
        ("vision_config", {"supported_aspect_ratios": [[1, 1], [2, 1]]}, "supported_aspect_ratios"),
        ("vision_config", {"norm_eps": 1e-6}, "norm_eps"),
        ("vision_config", {"hidden_size": "wide"}, "config.json"),
        ("vision_config", {"image_size": [28, 28]}, "image_size [28, 28]; expected one number"),
        ("vision_config", {"attention_heads": 0}, "config.json"),
        ("vision_config", {"patch_size": 0}, "config.json"),
        ("vision_config", {"max_num_tiles": 0}, "config.json"),
        ("vision_config", {"num_hidden_layers": -1}, "config.json"),
        ("vision_config", {"intermediate_layers_indices": ["a"]}, "config.json"),
        ("text_config", {"num_attention_heads": 0}, "config.json"),
        ("text_config", {"num_key_value_heads": 0}, "config.json"),
        ("text_config", {"num_attention_heads": 3}, "config.json"),
        ("text_config", {"intermediate_size": -1}, "config.json"),
        ("text_config", {"cross_attention_layers": 1}, "config.json"),
        ("text_config", {"rope_parameters": {"rope_type": "nope", "rope_theta": 1e4}}, "nope"),
        ("text_config", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "config.json"),
        ("text_config", {"rope_parameters": 3}, "config.json"),
        ("text_config", {"rms_norm_eps": "small"}, "config.json"),
        ("text_config", {"dtype": "nope"}, "config.json"),
        ("text_config", {"pad_token_id": 10**6}, "config.json"),
        ("", {"dtype": "nope"}, "config.json"),
        ("", {"vision_config": None}, "config.json"),
        ("", {"model_type": "llama"}, "model_type 'llama'; expected 'mllama'"),
        ("", {"text_config": 3}, "config.json"),
    ],
)
def test_a_config_that_contradicts_the_weights_or_itself(spoilt: Path, part: str, changes: Any, said: str) -> None:
    edit_config(spoilt, part, **changes)
    refused(spoilt, said)


def test_other_pictures_another_placeholder_no_tokenizer_no_config(spoilt: Path) -> None:
    file = spoilt / "preprocessor_config.json"
    settings = json.loads((spoilt / "processor_config.json").read_text())["image_processor"]
    (spoilt / "processor_config.json").unlink()
    file.write_text(json.dumps(settings | {"image_mean": [0.5, 0.5, 0.5]}))
    refused(spoilt, "image_mean (0.5, 0.5, 0.5)")
    file.unlink()
    read(spoilt)
    (spoilt / "tokenizer.json").unlink()
    refused(spoilt, "no usable tokenizer")
    (spoilt / "config.json").write_text("{")
    refused(spoilt, "config.json")
    (spoilt / "config.json").unlink()
    refused(spoilt, "no config.json")


@pytest.mark.parametrize("file", ["chat_template.json", "generation_config.json", "processor_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "3", "", "\xff"])
def test_damaged_files_beside_the_weights(spoilt: Path, file: str, text: str) -> None:
    (spoilt / "chat_template.jinja").unlink()  # as before transformers 5
    (spoilt / file).write_bytes(text.encode("latin-1"))
    refused(spoilt, file)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("chat_template.json", {}),
        ("chat_template.json", {"chat_template": 3}),
        ("processor_config.json", {"image_processor": 3}),
    ],
)
def test_values_of_no_use_in_files_beside_the_weights(spoilt: Path, file: str, values: Any) -> None:
    (spoilt / "chat_template.jinja").unlink()
    (spoilt / file).write_text(json.dumps(values))
    refused(spoilt, file)


def test_truncated_missing_and_pickled_weights(spoilt: Path) -> None:
    file = spoilt / WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    refused(spoilt, WEIGHTS, "truncated")
    file.write_bytes(whole[:5])
    refused(spoilt, WEIGHTS, "truncated")

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(spoilt / "ran"),))

    torch.save({"a": Evil()}, file)
    refused(spoilt, WEIGHTS, "pickle")
    file.rename(spoilt / "pytorch_model.bin")
    refused(spoilt, "pickled weights (pytorch_model.bin)", "expected safetensors")
    (spoilt / "pytorch_model.bin").unlink()
    refused(spoilt, "no model.safetensors")
    assert not (spoilt / "ran").exists()


def test_damaged_shards(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "shards"
    write_mllama(read(folder), broken, shard_bytes=20_000)
    first, second = sorted(broken.glob("*.safetensors"))[:2]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    refused(broken, first.name, "truncated")
    first.unlink()
    refused(broken, first.name, "no such file")
    first.write_bytes(whole)
    save_file(load_file(second) | dict(list(load_file(first).items())[:1]), second)
    refused(broken, second.name, "lies in", "expected each tensor once")
    index = json.loads((broken / INDEX).read_text())
    for name in ("../elsewhere.safetensors", "pytorch_model-00001-of-00002.bin"):
        (broken / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(index["weight_map"], name)}))
        refused(broken, name, "expected a safetensors file beside it")
    (broken / INDEX).write_text("[]")
    refused(broken, "not an index of shards")


def test_what_cannot_be_written_is_refused_and_nothing_remains(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(UserError, match="expected a new folder"):
        write_mllama(read(folder), tmp_path / "full")
    bare = read(folder)
    bare.unload_adapter("image")
    with pytest.raises(UserError, match="no adapter; expected an image adapter alone"):
        write_mllama(bare, tmp_path / "new")
    with pytest.raises(UserError, match="cannot hold"):
        write_mllama(tiny_model(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_quantised_decoder_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    ours = read(folder)
    quantize_decoder(ours.decoder.lm, "int8")
    with pytest.raises(UserError, match="cannot hold a decoder in int8"):
        write_mllama(ours, tmp_path / "written")
    assert not list(tmp_path.iterdir())


def test_a_decoder_that_begins_with_nothing_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    ours: Any = read(folder)
    ours.decoder.lm.config.bos_token_id = None
    with pytest.raises(UserError, match="cannot hold a decoder without a token to begin with"):
        write_mllama(ours, tmp_path / "written")


@pytest.mark.parametrize(
    ("part", "settings", "said"),
    [
        ("encoder", {"taps": (1, 4)}, "a tap after the last layer"),
        ("encoder", {"tap_norm": True}, "norms on taps"),
        ("encoder", {"stem": "conv", "patch_size": 4}, "a convolutional stem"),
        ("adapter", {"heads": 2}, "cross-attention with 2 heads"),
        ("adapter", {"heads": 4}, "cross-attention with 4 key/value heads"),
        ("adapter", {"ffn": 20}, "a feed-forward of 20"),
    ],
)
def test_settings_that_the_architecture_has_not(folder: Path, part: str, settings: Any, said: str) -> None:
    assert max(TAPS) < 4
    ours = read(folder)
    image: Any = ours.modalities["image"]
    image.config = replace(image.config, **{part: replace(getattr(image.config, part), **settings)})
    with pytest.raises(UserError, match=f"cannot hold .*{said}"):
        write_mllama(ours, folder.parent / "never")
