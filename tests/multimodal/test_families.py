"""The three promises, whole model by whole model: every family of decoders, with a chat template and without."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from tests.multimodal.tiny_decoders import FAMILIES
from tests.multimodal.tiny_tokenizers import foreign_tokenizer
from tests.tiny_models import CONFIG, TILE, ask, decoder_for, open_gates, picture

TEXT = ask("Repeat after me in English: one two three.")
EARLY = ("Who saw whom?", "Describe the image.")
templates = pytest.mark.parametrize("template", ["llama3", "no template"])


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def shared(family: str) -> MultimodalModel:
    """Of that family, its gates open. The tokenizers of all templates have the same ids."""
    tokenizer = foreign_tokenizer("llama3")
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = MultimodalModel(FrozenDecoder(decoder_for(tokenizer, family=family)), tokenizer, decoder_name=family)
        model.add("image", CONFIG)
        open_gates(model.modalities)
    return model.eval()


@pytest.fixture
def model(shared: MultimodalModel, template: str) -> Iterator[MultimodalModel]:
    """Its adapter may be changed; it is put back."""
    before = {name: p.detach().clone() for name, p in shared.modalities.named_parameters()}
    shared.tokenizer = foreign_tokenizer(template)
    yield shared.eval()
    with torch.no_grad():
        for name, parameter in shared.modalities.named_parameters():
            parameter.copy_(before[name])


@torch.no_grad()
def logits(model: MultimodalModel, *chats: Any, blind: bool = False) -> list[Tensor]:
    """Of each row, without its padding."""
    batch = model.collate([model.sample(chat, "A red fox.") for chat in chats])
    memory = None if blind else model.memory(batch)
    out = model.decoder(batch.input_ids, batch.attention_mask, memory=memory)
    return [row[: int(mask.sum())] for row, mask in zip(out, batch.attention_mask, strict=True)]


@templates
def test_the_text_model_stays_itself(model: MultimodalModel, family: str) -> None:
    bare, decoder = decoder_for(model.tokenizer, family=family), model.decoder
    batch = model.collate([model.sample(TEXT, "one two three")])
    expected = bare(batch.input_ids, attention_mask=batch.attention_mask).logits
    sha256 = decoder.sha256()
    assert torch.equal(decoder(batch.input_ids, batch.attention_mask), expected)
    model.train()
    loss, count = model.loss(model.collate([model.sample(ask(picture(), text), "A fox.") for text in EARLY]))
    (loss / count).backward()
    with torch.no_grad():
        for parameter in model.modalities.parameters():
            parameter.sub_(parameter.grad if parameter.grad is not None else 0, alpha=0.1)
    assert all(p.grad is not None for p in decoder.adapters.parameters())
    model.zero_grad()
    assert torch.equal(decoder(batch.input_ids, batch.attention_mask), expected) and decoder.sha256() == sha256
    ids = model.collate([model.sample(TEXT)]).input_ids
    kw: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    said = bare.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **kw)[0, ids.shape[1] :]
    assert model.chat(TEXT, max_new_tokens=4) == model.tokenizer.decode(said, skip_special_tokens=True).strip()


@templates
def test_a_batch_is_never_a_leak(model: MultimodalModel) -> None:
    chats = [ask(EARLY[0], picture(seed=1), EARLY[1]), TEXT, ask(picture(2 * TILE, TILE), "Who?", picture(seed=3))]
    together, blind = logits(model, *chats), logits(model, *chats, blind=True)
    for row, chat in enumerate(chats):
        torch.testing.assert_close(together[row], logits(model, chat)[0], atol=1e-4, rtol=1e-4)
    assert (together[0] - blind[0]).abs().max() > 0.02, "the picture changes nothing, so this test shows nothing"
    assert torch.equal(together[1], blind[1]), "the text-only row is the bare decoder's to the bit"
    at = model.sample(chats[0]).turns[0].prompt.index(model.decoder.vocab_size)
    other = logits(model, ask(EARLY[0], picture(seed=2), EARLY[1]))[0]
    assert at > 3
    # Experts compute together the tokens that chose them: others in the same product may change the rounding.
    exact = "mixtral" not in type(model.decoder.lm).__name__.lower()
    tolerance = 0.0 if exact else 1e-5
    torch.testing.assert_close(logits(model, chats[0])[0][:at], other[:at], atol=tolerance, rtol=tolerance)


def test_an_adapter_is_a_thing_of_its_own(shared: MultimodalModel, family: str, tmp_path: Path) -> None:
    for seed, name in ((0, "decoder"), (1, "other")):
        decoder_for(shared.tokenizer, family=family, seed=seed).save_pretrained(tmp_path / name)
        shared.tokenizer.save_pretrained(tmp_path / name)
    shared.decoder_name = str(tmp_path / "decoder")
    shared.save_pretrained(tmp_path / "adapter")
    again = MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu")
    chat = ask(picture(), "Who?")
    assert again.tokenizer.chat_template == shared.tokenizer.chat_template
    assert torch.equal(logits(again, chat)[0], logits(shared, chat)[0])
    with pytest.raises(UserError, match="expected the same weights"):
        MultimodalModel.from_pretrained(tmp_path / "adapter", decoder=str(tmp_path / "other"), device="cpu")
