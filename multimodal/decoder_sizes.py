"""The sizes of a decoder that an adapter is made for, whatever the decoder's family calls them."""

from dataclasses import dataclass

from multimodal.decoder import FrozenDecoder


@dataclass(frozen=True)
class DecoderSizes:
    """What an adapter must know of its decoder."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    eps: float


def decoder_sizes(decoder: FrozenDecoder) -> DecoderSizes:
    """Sizes from the decoder's own configuration."""
    config = decoder.lm.config.get_text_config()
    heads = config.num_attention_heads
    return DecoderSizes(
        width=decoder.dim,
        layers=decoder.n_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        ffn=config.intermediate_size,
        eps=getattr(config, "rms_norm_eps", None) or getattr(config, "layer_norm_eps", 1e-5),
    )
