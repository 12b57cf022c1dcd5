"""Names of the hub where a folder may stand: the hub's own client, on its local cache, with no way to the hub."""

from pathlib import Path

import pytest
import torch

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from multimodal.pretrained import load_decoder
from tests.hub_cache import publish
from tests.multimodal.test_hub_encoder import first_weight, save_clip
from tests.tiny_models import ask, picture, tiny_model
from vision.image_modality import EncoderOptions, ImageConfig

CPU = torch.device("cpu")


def test_a_decoder_and_an_encoder_by_name(decoder_folder: Path, hub_cache: Path, tmp_path: Path) -> None:
    publish(decoder_folder, "me/llama", hub_cache)
    publish(save_clip(tmp_path / "clip"), "me/clip", hub_cache)
    decoder, tokenizer = load_decoder("me/llama", dtype=torch.float32, device=CPU)
    same, _ = load_decoder(str(decoder_folder), dtype=torch.float32, device=CPU)
    assert decoder.sha256() == same.sha256() and tokenizer.chat_template

    model = tiny_model(ImageConfig(encoder=EncoderOptions(name="me/clip")), opened=False, name="me/llama")
    model.save_pretrained(tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "base_model: me/llama" in card and "`me/clip` is not in this folder" in card
    again = MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert torch.equal(first_weight(again), first_weight(model))
    chat = ask(picture(), "Who?")
    assert again.chat(chat, max_new_tokens=3) == model.chat(chat, max_new_tokens=3)


@pytest.mark.usefixtures("hub_cache")
def test_a_name_that_the_hub_does_not_give_is_one_line() -> None:
    with pytest.raises(UserError, match="decoder me/nothing: cannot be loaded") as error:
        load_decoder("me/nothing", dtype=torch.float32, device=CPU)
    assert "\n" not in str(error.value)
