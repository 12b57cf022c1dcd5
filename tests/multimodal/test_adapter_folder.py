"""The adapter folder: the same model comes back, nothing of the decoder is in it, and damage is named in one line."""

import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from multimodal import adapter_files as module
from multimodal import adapter_folder as adapter_folder_module
from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from tests.multimodal.tiny_decoders import tiny_decoder
from tests.multimodal.tiny_tokenizers import builtin_tokenizer
from tests.tiny_models import TILE, VIDEO, ask, picture, save_decoder, tiny_model

CHAT = ask("Who?", picture(2 * TILE, TILE), "Describe the image.")
WEIGHTS, CONFIG = "adapter.safetensors", "adapter_config.json"


def load(folder: Path, **settings: Any) -> MultimodalModel:
    return MultimodalModel.from_pretrained(folder, device="cpu", **settings)


@torch.no_grad()
def logits(model: MultimodalModel) -> torch.Tensor:
    batch = model.collate([model.sample(CHAT, "A fox.")])
    return model.decoder(batch.input_ids, memory=model.memory(batch))


@pytest.fixture
def folder(adapter_folder: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


# ---- round trip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile_size", [TILE, 24])
def test_what_was_saved_comes_back_to_the_bit(decoder_folder: Path, tmp_path: Path, tile_size: int) -> None:
    model = tiny_model(name=str(decoder_folder))
    image: Any = model.modalities["image"]
    if tile_size != TILE:
        image.resize_tiles(tile_size)
    model.save_pretrained(tmp_path / "a", recipe={"steps": 3}, metrics={"cider_d": 0.25})
    again = load(tmp_path / "a")
    assert not again.training
    known: Any = again.modalities["image"]
    assert known.tiling == image.tiling and known.tiling.tile_size == tile_size and known.config == image.config
    before = dict(model.named_parameters())
    assert before.keys() == dict(again.named_parameters()).keys()
    assert all(torch.equal(p, before[name]) for name, p in again.named_parameters())
    assert torch.equal(logits(again), logits(model))
    assert again.chat(CHAT, max_new_tokens=6) == model.chat(CHAT, max_new_tokens=6)
    again.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / WEIGHTS).read_bytes() == (tmp_path / "a" / WEIGHTS).read_bytes()


def test_the_folder_holds_the_adapter_only_and_says_what_it_is(decoder_folder: Path, tmp_path: Path) -> None:
    model = tiny_model(name=str(decoder_folder))
    model.save_pretrained(tmp_path / "a", recipe={"train": {"steps": 3}}, metrics={"cider_d": 0.25})
    assert {file.name for file in (tmp_path / "a").iterdir()} == {WEIGHTS, CONFIG, "README.md"}
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    owned = {f"modalities.{n}" for n, _ in model.modalities.named_parameters()} | {"extra_embedding.weight"}
    assert tensors.keys() == owned
    decoder = {p.data_ptr(): p for p in model.decoder.lm.parameters()}.values()
    assert not any(t.shape == p.shape and torch.equal(t, p) for t in tensors.values() for p in decoder)
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["decoder"] == str(decoder_folder) and config["decoder_sha256"] == model.decoder.sha256()
    assert config["recipe"] == {"train": {"steps": 3}} and config["metrics"] == {"cider_d": 0.25}
    assert config["versions"]["torch"] == torch.__version__ and config["versions"]["graft"] == version(
        "graft-multimodal"
    )
    assert config["decoder_sizes"]["width"] == model.decoder.dim
    image: Any = model.modalities["image"]
    assert type(image.config).from_dict(config["modalities"]["image"]) == image.config
    assert "| cider_d | 0.25 |" in (tmp_path / "a" / "README.md").read_text()


@pytest.mark.parametrize("change", [None, "a weight", "another decoder", "one more modality"])
def test_what_is_known_of_an_adapter_goes_along_while_it_is_true(
    decoder_folder: Path, tmp_path: Path, change: str | None
) -> None:
    recipe, metrics = {"train": {"steps": 3}}, {"cider_d": 0.25}
    tiny_model(name=str(decoder_folder)).save_pretrained(tmp_path / "a", recipe=recipe, metrics=metrics)
    other = save_decoder(tmp_path / "other", seed=1) if change == "another decoder" else None
    model = load(tmp_path / "a", decoder=other and str(other), force_decoder=True)
    if change == "a weight":
        with torch.no_grad():
            next(model.modalities["image"].parameters()).flatten()[0] += 1
    if change == "one more modality":
        model.add("video", VIDEO)
    model.save_pretrained(tmp_path / "b")
    config = json.loads((tmp_path / "b" / CONFIG).read_text())
    assert (config["recipe"], config["metrics"]) == ((recipe, metrics) if change is None else ({}, {}))


def test_the_configuration_is_read_once(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was checked is what is used, whatever happens to the file in between."""
    real, read = adapter_folder_module.read_config, list[Path]()
    monkeypatch.setattr(adapter_folder_module, "read_config", lambda folder: (read.append(folder), real(folder))[1])
    load(adapter_folder)
    assert read == [adapter_folder]


# ---- another decoder ----------------------------------------------------------------------------------------------


def test_another_decoder_is_refused_unless_forced(adapter_folder: Path, tmp_path: Path) -> None:
    other = str(save_decoder(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"trained on decoder .*expected the same weights \(--force-decoder"):
        load(adapter_folder, decoder=other)
    forced = load(adapter_folder, decoder=other, force_decoder=True)
    assert forced.decoder_name == other and not torch.equal(logits(forced), logits(load(adapter_folder)))


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": 5}, {"num_attention_heads": 2}, {"rms_norm_eps": 1e-3}])
def test_a_decoder_of_other_sizes_is_refused_even_by_force(
    adapter_folder: Path, tmp_path: Path, sizes: dict[str, Any]
) -> None:
    """Also where all shapes are the same: as many weights in more heads compute something else."""
    tokenizer = builtin_tokenizer()
    tiny_decoder(vocab_size=len(tokenizer), **sizes).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"was trained on .* and other sizes \(\w+ [\d.e-]+ for .*expected a decoder of"
    ) as e:
        load(adapter_folder, decoder=str(tmp_path), force_decoder=True)
    assert "\n" not in str(e.value)


def test_an_equal_decoder_elsewhere_is_accepted(adapter_folder: Path, decoder_folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(decoder_folder, tmp_path / "moved")
    assert torch.equal(logits(load(adapter_folder, decoder=str(moved))), logits(load(adapter_folder)))


# ---- damage -------------------------------------------------------------------------------------------------------


def drop(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["modalities.image.adapter.projector.weight"]
    save_file(tensors, folder / WEIGHTS)


def add(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS) | {"stranger": torch.zeros(1)}, folder / WEIGHTS)


def reshape(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"extra_embedding.weight": tensors["extra_embedding.weight"][:3].clone()}, folder / WEIGHTS)


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def pickle_it(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter.bin")
    (folder / WEIGHTS).unlink()


def pickle_in_disguise(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()  # they are still read from it
    torch.save(tensors, folder / WEIGHTS)


def other_width(config: dict[str, Any]) -> None:
    config["modalities"]["image"]["encoder"]["width"] = 32


def no_number(config: dict[str, Any]) -> None:
    config["modalities"]["image"]["encoder"]["global_layers"] = 1.5


def empty_modality(config: dict[str, Any]) -> None:
    del config["modalities"]["image"]["adapter"]


def stranger_setting(config: dict[str, Any]) -> None:
    config["modalities"]["image"]["encoder"]["no_such_setting"] = 1


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensor": (drop, r"missing modalities\.image\.adapter\.projector\.weight$"),
    "extra tensor": (add, "unknown stranger$"),
    "misshapen tensor": (reshape, r"extra_embedding\.weight \[3, 32\] for \[8, 32\]$"),
    "truncated weights": (truncate, "adapter.safetensors: cannot be read"),
    "a pickle": (pickle_it, r"adapter\.bin: a pickle, which may run code; expected the adapter's tensors in"),
    "a pickle in disguise": (pickle_in_disguise, r"adapter\.safetensors: a pickle, which may run code; expected"),
    "settings of other weights": (
        lambda f: edit_config(f, other_width),
        r"does not fit the configuration: .*\[.* for \[",
    ),
    "settings of no use": (lambda f: edit_config(f, no_number), "settings of image that cannot be built"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "adapter.safetensors: no such file"),
    "no config": (lambda f: (f / CONFIG).unlink(), "no adapter_config.json; expected an adapter folder"),
    "config cut off": (lambda f: (f / CONFIG).write_text((f / CONFIG).read_text()[:40]), "not JSON"),
    "config not text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), "not JSON"),
    "config of a list": (lambda f: (f / CONFIG).write_text("[]"), "format None; this version of Graft reads 1"),
    "newer format": (
        lambda f: edit_config(f, lambda c: c.update(format=2)),
        "format 2; .* reads 1; expected a newer",
    ),
    "no such dtype": (lambda f: edit_config(f, lambda c: c.update(decoder_dtype="rm")), "decoder_dtype is 'rm'"),
    "modalities of a list": (lambda f: edit_config(f, lambda c: c.update(modalities=[])), r"\[\]; expected a dict"),
    "borrowed nothing": (
        lambda f: edit_config(f, lambda c: c.update(borrowed={"x": 1})),
        "x is 1; expected its",
    ),
    "no decoder": (lambda f: edit_config(f, lambda c: c.pop("decoder")), "no 'decoder' in it"),
    "no such modality": (lambda f: edit_config(f, lambda c: c["modalities"].update(smell={})), "'smell'"),
    "settings missing": (lambda f: edit_config(f, empty_modality), "adapter"),
    "unknown setting": (lambda f: edit_config(f, stranger_setting), "no_such_setting"),
    "decoder gone": (lambda f: edit_config(f, lambda c: c.update(decoder=str(f / "gone"))), "gone: no such folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_in_one_line(folder: Path, damage: str) -> None:
    spoil, expected = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(UserError, match=expected) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_no_more_than_ten_tensors_are_named(folder: Path) -> None:
    save_file({"stranger": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"(missing [^;]*; ){9}missing [\w.]+ and \d+ more$"):
        load(folder)


@pytest.mark.parametrize("what", ["missing", "a file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, what: str) -> None:
    if what == "a file":
        (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"x: no adapter_config\.json; expected an adapter folder"):
        load(tmp_path / "x")


# ---- replacing an older one ---------------------------------------------------------------------------------------


@pytest.fixture
def trained(folder: Path) -> MultimodalModel:
    """The model of `folder`, one number different."""
    model = load(folder)
    with torch.no_grad():
        model.decoder.extra_embedding.weight[0, 0] += 1
    return model


def first_number(folder: Path) -> float:
    return load(folder).decoder.extra_embedding.weight[0, 0].item()


def test_an_older_adapter_is_replaced_whole(folder: Path, trained: MultimodalModel) -> None:
    before = first_number(folder)
    (folder / "stale").write_text("")
    trained.save_pretrained(folder)
    assert first_number(folder) == pytest.approx(before + 1) and not (folder / "stale").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_the_folder_that_somebody_stands_in_can_be_written(
    folder: Path, trained: MultimodalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    trained.save_pretrained(Path("."))
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CONFIG, "README.md"}
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interruption_of_the_exchange_leaves_the_older_one(
    folder: Path, trained: MultimodalModel, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException
) -> None:
    before, calls, replace = first_number(folder), [0], os.replace

    def failing(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == call:
            raise error
        replace(*args)

    monkeypatch.setattr(module.os, "replace", failing)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        trained.save_pretrained(folder)
    monkeypatch.undo()
    assert first_number(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_a_kill_between_the_two_renames_loses_nothing(folder: Path, trained: MultimodalModel) -> None:
    before = first_number(folder)
    shutil.copytree(folder, folder.with_name("adapter.new"))
    (folder.with_name("adapter.new") / WEIGHTS).write_bytes(b"half")
    os.replace(folder, folder.with_name("adapter.old"))
    assert first_number(folder) == before
    bare = load(folder)
    bare.unload_adapter("image")
    bare.load_adapter(folder)
    assert torch.equal(logits(bare), logits(load(folder)))
    trained.save_pretrained(folder)
    assert first_number(folder) == pytest.approx(before + 1)
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_a_full_disk_is_one_line_and_leaves_the_older_one(
    folder: Path, trained: MultimodalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tensors: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    before = first_number(folder)
    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(UserError, match=r"adapter .*: .*No space left on device.*expected a writable disk") as error:
        trained.save_pretrained(folder)
    assert "\n" not in str(error.value) and first_number(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds other files"):
        tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
