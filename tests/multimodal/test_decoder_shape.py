"""Sizes make a configuration of `transformers`, or are refused."""

import pytest

from multimodal.decoder_shape import DecoderShape
from multimodal.errors import UserError


@pytest.mark.parametrize("wrong", [{"heads": 3}, {"kv_heads": 3}, {"layers": 0}, {"heads": 0}, {"kv_heads": -1}])
def test_impossible_shapes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="decoder: "):
        DecoderShape(**wrong)


def test_sizes_and_other_settings_are_in_the_configuration() -> None:
    shape = DecoderShape(layers=2, width=64, heads=4, kv_heads=2, ffn=96, vocabulary=300)
    plain, other = shape.config(), shape.config(tie_word_embeddings=True, rms_norm_eps=0.5)
    for config in (plain, other):
        assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (2, 64, 96)
        assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (4, 2, 300)
    assert not plain.tie_word_embeddings and other.tie_word_embeddings and other.rms_norm_eps == 0.5
