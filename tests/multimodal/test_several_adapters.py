"""Several adapter folders on one decoder: nothing that one modality does is changed by another, there or gone again."""

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from multimodal.pretrained import load_decoder
from tests.multimodal.test_adapter_folder import CONFIG as CONFIG_FILE
from tests.multimodal.test_adapter_folder import WEIGHTS, edit_config, load
from tests.speech.test_speech_modality import CONFIG as SPEECH
from tests.speech.test_speech_modality import REPEAT, sound
from tests.tiny_models import ask, open_gates, picture, save_decoder, tiny_model, tiny_video_model

Folders = dict[str, Path]
SOUND = {"type": "audio", "audio": sound(0.7)}
CHATS: dict[str, Any] = {
    "text": ask("Who saw whom?"),
    "image": ask(picture(), "Describe the image."),
    "video": ask([picture(seed=i) for i in range(6)], "Who?"),
    "audio": [{"role": "user", "content": [{"type": "text", "text": REPEAT}, SOUND]}],
}
KINDS = {"image": ("image",), "video": ("image", "video"), "audio": ("audio",)}
"""What the folder of each adapter holds."""


@torch.no_grad()
def set_rows(model: MultimodalModel, value: float, rows: Sequence[int] = range(8)) -> None:
    """Make rows of the extra tokens ones that would show where they come with a folder that they do not belong to."""
    for row in rows:
        model.decoder.extra_embedding.weight[row] = value + 0.1 * row


def speech_model(decoder_folder: Path) -> MultimodalModel:
    decoder, tokenizer = load_decoder(str(decoder_folder), dtype=torch.float32, device=torch.device("cpu"))
    model = MultimodalModel(decoder, tokenizer, decoder_name=str(decoder_folder))
    torch.manual_seed(8)
    model.add("audio", SPEECH)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, decoder_folder: Path) -> Folders:
    """Three adapters for one decoder: for pictures, for clips on the same image parts, and for speech."""
    place, name = tmp_path_factory.mktemp("adapters"), str(decoder_folder)
    image, video, speech = tiny_model(name=name), tiny_video_model(name=name), speech_model(decoder_folder)
    for model, value in ((image, 0.1), (video, 0.3), (speech, -0.2)):
        set_rows(model, value)
    set_rows(video, 0.1, rows=[0])  # of the image parts that both share
    for kind, model in (("image", image), ("video", video), ("audio", speech)):
        model.save_pretrained(place / kind)
    return {kind: place / kind for kind in ("image", "video", "audio")}


@torch.no_grad()
def outcome(model: MultimodalModel, chat: Any) -> tuple[Tensor, str]:
    """Logits of an answered chat, and what the model says."""
    batch = model.collate([model.sample(chat, "A fox.")])
    logits = model.decoder(
        batch.input_ids, batch.attention_mask, memory=model.memory(batch), inserted=model.inserted(batch)
    )
    return logits, model.chat(chat, max_new_tokens=5, num_beams=2)


def outcomes(model: MultimodalModel) -> dict[str, tuple[Tensor, str]]:
    return {kind: outcome(model, chat) for kind, chat in CHATS.items() if kind == "text" or kind in model.modalities}


def assert_same(found: dict[str, tuple[Tensor, str]], expected: dict[str, tuple[Tensor, str]]) -> None:
    assert found.keys() == expected.keys()
    for kind, (logits, said) in expected.items():
        assert torch.equal(found[kind][0], logits), kind
        assert found[kind][1] == said, kind


def state(model: MultimodalModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: MultimodalModel, expected: dict[str, Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.fixture(scope="module")
def alone(folders: Folders) -> dict[str, tuple[Tensor, str]]:
    """What each adapter does on a decoder of its own."""
    found = {kind: outcomes(load(folder))[kind] for kind, folder in folders.items()}
    found["text"] = outcomes(load(folders["image"]))["text"]
    for i, kind in enumerate(found):
        others = [found[other][0] for other in list(found)[i + 1 :]]
        assert not any(found[kind][0].shape == o.shape and torch.equal(found[kind][0], o) for o in others)
    return found


# ---- together -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [o for o in permutations(KINDS) if o.index("image") < o.index("video")])
def test_each_does_what_it_does_alone_to_the_bit(folders: Folders, alone: Any, order: tuple[str, ...]) -> None:
    model = load(folders[order[0]])
    for kind in order[1:]:
        model.load_adapter(folders[kind])
        assert_same(outcomes(model), {name: alone[name] for name in outcomes(model)})
    assert set(model.modalities) == set(KINDS) and not model.training
    assert not any(module.training for module in model.modules())
    assert model.decoder.seam.order == ["video", "image"]


def test_video_brings_its_image_parts(folders: Folders, alone: Any) -> None:
    model = load(folders["audio"])
    model.load_adapter(folders["video"])
    assert_same(outcomes(model), alone)


def test_all_together_hear_and_see_each_other(folders: Folders) -> None:
    model = load(folders["video"])
    model.load_adapter(folders["audio"])
    parts = [*CHATS["video"][0]["content"], SOUND]
    both = outcome(model, [{"role": "user", "content": parts}])[0]
    other = outcome(model, [{"role": "user", "content": [*parts[:-1], {"type": "audio", "audio": sound(0.7, seed=9)}]}])
    unseen = outcome(model, [{"role": "user", "content": [*ask([picture(seed=60)])[0]["content"], *parts[1:]]}])
    assert not torch.allclose(both, other[0], atol=1e-3) and not torch.allclose(both, unseen[0], atol=1e-3)


def test_one_conversation_of_pictures_clips_speech_and_text(folders: Folders) -> None:
    """Several turns, every kind of part: each part is heeded, and the order in which adapters came is not."""
    model = load(folders["video"])
    model.load_adapter(folders["audio"])
    again = load(folders["audio"])
    again.load_adapter(folders["video"])

    def chat(seen: Any = None, clip: Any = None, heard: Any = None, text: str = "Who?") -> list[Any]:
        clip = clip or [picture(seed=i) for i in range(6)]
        first = ask(seen or picture(32, 16), clip, text)[0]
        first["content"].insert(1, heard or SOUND)
        return [first, {"role": "assistant", "content": "A fox."}, *ask("Again.", picture(seed=3))]

    whole = outcome(model, chat())
    assert torch.equal(whole[0], outcome(again, chat())[0]) and whole[1] == outcome(again, chat())[1]
    assert torch.equal(outcome(model, CHATS["text"])[0], outcome(load(folders["image"]), CHATS["text"])[0])
    for other in (
        chat(seen=picture(32, 16, seed=9)),
        chat(clip=[picture(seed=40 + i) for i in range(6)]),
        chat(heard={"type": "audio", "audio": sound(0.7, seed=9)}),
        chat(text="Why?"),
    ):
        assert not torch.allclose(whole[0][:, -1], outcome(model, other)[0][:, -1], atol=1e-4)


def test_saved_together_they_come_back(folders: Folders, tmp_path: Path) -> None:
    model = load(folders["video"])
    model.load_adapter(folders["audio"])
    model.save_pretrained(tmp_path / "all")
    assert_same(outcomes(load(tmp_path / "all")), outcomes(model))


def test_loading_while_training_leaves_the_mode_alone(folders: Folders) -> None:
    model = load(folders["image"]).train()
    model.load_adapter(folders["audio"])
    assert model.modalities["audio"].training and not model.decoder.lm.training


# ---- taken off ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "taken"), [("image", "audio"), ("audio", "video"), ("image", "video")])
def test_after_unloading_the_model_is_what_it_was(folders: Folders, kept: str, taken: str) -> None:
    model = load(folders[kept])
    model.decoder.reset_extra([row for row in range(8) if row not in model.token_rows(kept)])
    before, expected = state(model), outcomes(model)
    model.load_adapter(folders[taken])
    for kind in reversed(KINDS[taken]):
        if kind != kept:
            model.unload_adapter(kind)
    assert_same_state(model, before)
    assert_same(outcomes(model), expected)


def test_unloading_the_first_leaves_the_second(folders: Folders, alone: Any) -> None:
    model = load(folders["image"])
    model.load_adapter(folders["audio"])
    model.unload_adapter("image")
    assert_same(outcomes(model), {kind: alone[kind] for kind in ("audio", "text")})
    with pytest.raises(UserError, match="no image adapter"):
        model.chat(CHATS["image"])
    model.load_adapter(folders["video"])
    assert_same(outcomes(model), alone)


def test_what_cannot_be_unloaded_is_one_line(folders: Folders) -> None:
    model = load(folders["video"])
    with pytest.raises(
        UserError, match=r"'video' builds on modality 'image'; expected unload_adapter\('video'\) first"
    ):
        model.unload_adapter("image")
    with pytest.raises(UserError, match="no modality 'audio' to unload; expected one of image, video"):
        model.unload_adapter("audio")
    assert list(model.modalities) == ["image", "video"] == sorted(model.decoder.adapters)


def test_a_sample_of_an_unloaded_kind_is_no_silent_text(folders: Folders) -> None:
    model = load(folders["image"])
    model.load_adapter(folders["audio"])
    sample = model.sample(CHATS["audio"])
    model.unload_adapter("audio")
    with pytest.raises(ValueError, match="0 audio placeholders"):
        model.collate([sample])


# ---- refused ------------------------------------------------------------------------------------------------------


def another_decoder(folder: Path, tmp_path: Path) -> None:
    speech_model(save_decoder(tmp_path / "decoder", seed=1)).save_pretrained(folder)


def other_image_weights(folder: Path, _: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["modalities.image.adapter.projector.weight"][0, 0] += 1
    save_file(tensors, folder / WEIGHTS)


def other_image_token(folder: Path, _: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["extra_embedding.weight"][0, 0] += 1
    save_file(tensors, folder / WEIGHTS)


def other_image_settings(folder: Path, _: Path) -> None:
    edit_config(folder, lambda config: config["modalities"]["image"].update(stretch=True))


def without_a_tensor(folder: Path, _: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[next(name for name in tensors if name.startswith("modalities.video"))]
    save_file(tensors, folder / WEIGHTS)


def as_it_is(folder: Path, _: Path) -> None:
    assert (folder / CONFIG_FILE).is_file()


REFUSED: dict[str, tuple[str, str, Callable[[Path, Path], None], str]] = {
    "another decoder": ("image", "audio", another_decoder, "trained on decoder .*expected the same weights"),
    "the same again": (
        "image",
        "image",
        as_it_is,
        r"for image, which the model has already; .*unload_adapter\('image'",
    ),
    "nothing new": ("video", "image", as_it_is, "for image, which the model has already"),
    "video again": ("video", "video", as_it_is, "which the model has already"),
    "other image weights": ("image", "video", other_image_weights, "its video parts build on image parts that differ"),
    "other image token": ("image", "video", other_image_token, "its video parts build on image parts that differ"),
    "other image settings": (
        "image",
        "video",
        other_image_settings,
        "its video parts build on image parts that differ",
    ),
    "damaged": ("image", "video", without_a_tensor, r"does not fit the configuration: missing modalities\.video"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_one_line_and_leaves_the_model(folders: Folders, tmp_path: Path, case: str) -> None:
    there, folder, spoil, expected = REFUSED[case]
    model = load(folders[there])
    before, order = state(model), list(model.decoder.seam.order)
    spoilt = tmp_path / folder
    spoilt.mkdir()
    for file in folders[folder].iterdir():
        (spoilt / file.name).write_bytes(file.read_bytes())
    spoil(spoilt, tmp_path)
    with pytest.raises(UserError, match=expected) as error:
        model.load_adapter(spoilt)
    assert "\n" not in str(error.value)
    assert list(model.modalities) == list(KINDS[there]) and model.decoder.seam.order == order
    assert_same_state(model, before)


def test_another_decoder_is_accepted_if_forced(folders: Folders, tmp_path: Path) -> None:
    another_decoder(tmp_path / "speech", tmp_path)
    model = load(folders["image"])
    model.load_adapter(tmp_path / "speech", force_decoder=True)
    assert list(model.modalities) == ["image", "audio"]


def test_one_that_trained_further_is_another(folders: Folders) -> None:
    model = load(folders["image"])
    open_gates(model.modalities["image"], gate=0.3)
    with pytest.raises(UserError, match="build on image parts that differ"):
        model.load_adapter(folders["video"])


def test_the_same_kind_cannot_be_added_twice(folders: Folders) -> None:
    model = load(folders["audio"])
    before = state(model)
    with pytest.raises(UserError, match="'audio' is attached already"):
        model.add("audio", SPEECH)
    assert_same_state(model, before)


def test_a_folder_says_which_image_parts_it_holds(folders: Folders) -> None:
    """What the tests above take for granted: a video adapter's folder has image parts of its own."""
    for kind, folder in folders.items():
        assert tuple(json.loads((folder / CONFIG_FILE).read_text())["modalities"]) == KINDS[kind]
