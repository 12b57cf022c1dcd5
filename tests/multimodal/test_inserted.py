"""Media in the place of tokens: what stands at a placeholder is read as a word's embedding would be."""

import pytest
import torch
from torch import Tensor

from multimodal.decoder import FrozenDecoder
from multimodal.memory import inserted_rows
from tests.multimodal.tiny_decoders import FAMILIES, VOCAB, tiny_decoder

SPEECH = VOCAB + 2


def with_words(decoder: FrozenDecoder) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ids with placeholders, the same with words in their place, the mask, and the words' embeddings."""
    torch.manual_seed(3)
    words = torch.randint(1, VOCAB, (3, 9))
    mask = torch.ones_like(words)
    mask[2, :2] = 0
    at = torch.zeros_like(words, dtype=torch.bool)
    at[0, 2:5] = at[2, 4:8] = True
    return words.masked_fill(at, SPEECH), words, mask, decoder.lm.get_input_embeddings()(words[at])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embeddings_of_words_read_as_the_words(family: str) -> None:
    decoder = FrozenDecoder(tiny_decoder(family))
    ids, words, mask, embeddings = with_words(decoder)
    with torch.no_grad():
        torch.testing.assert_close(
            decoder(ids, mask, inserted={SPEECH: embeddings})[mask.bool()], decoder(words, mask)[mask.bool()]
        )
        other = decoder(ids, mask, inserted={SPEECH: embeddings.flip(0)})
        assert not torch.allclose(other[0, 2:], decoder(words, mask)[0, 2:], atol=1e-3)
        assert torch.equal(other[1], decoder(ids, mask, inserted={SPEECH: embeddings})[1])


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_reads_them_too(beams: int) -> None:
    decoder = FrozenDecoder(tiny_decoder())
    ids, words, mask, embeddings = with_words(decoder)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    heard = decoder.generate(ids, mask, inserted={SPEECH: embeddings}, **options)
    assert torch.equal(heard, decoder.generate(words, mask, **options))


def test_gradient_reaches_them_and_not_the_decoder() -> None:
    decoder = FrozenDecoder(tiny_decoder())
    ids, _, mask, embeddings = with_words(decoder)
    embeddings = embeddings.detach().requires_grad_()
    decoder.hidden(ids, mask, inserted={SPEECH: embeddings}).square().sum().backward()
    assert embeddings.grad is not None and embeddings.grad.abs().amax(-1).min() > 0
    assert all(p.grad is None for p in decoder.lm.parameters())


def test_too_few_or_too_many_are_refused() -> None:
    decoder = FrozenDecoder(tiny_decoder())
    ids, _, mask, embeddings = with_words(decoder)
    for wrong in (embeddings[1:], torch.cat([embeddings, embeddings])):
        with pytest.raises(ValueError, match=f"{len(wrong)} embeddings for 7 tokens {SPEECH}"):
            decoder.hidden(ids, mask, inserted={SPEECH: wrong})


def test_rows_take_their_own_along() -> None:
    ids = torch.tensor([[1, 9, 9], [2, 3, 4], [9, 5, 6], [7, 9, 9]])
    embeddings = torch.arange(5.0)[:, None]
    picked = inserted_rows({9: embeddings}, ids, torch.tensor([3, 1, 0]))
    assert picked[9][:, 0].tolist() == [3, 4, 0, 1]
