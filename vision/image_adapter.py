"""The image adapter: a projector into the decoder's width, and gated cross-attention layers that read what it gives.

Llama 3 paper, section 7.2 / spec A4. One projection serves all layers.
"""

from dataclasses import dataclass

from torch import nn

from multimodal.batch import MediaBatch
from multimodal.decoder_sizes import DecoderSizes
from multimodal.errors import UserError
from multimodal.memory import AdapterMemory
from multimodal.placement import cross_attention_layers
from vision.cross_layers import CrossLayers, CrossLayersConfig
from vision.encoder import ImageFeatures


@dataclass(frozen=True, kw_only=True)
class ImageAdapterConfig(CrossLayersConfig):
    """Sizes of the cross-attention layers, and how many; 0 takes the decoder's own size (spec A4.1)."""

    cross_layers: int = 2
    """Cross-attention layers, spread over the decoder counting back from its last layer (spec A4.3)."""
    dropout: float = 0.0
    """Dropout on the projected features, in training."""
    placed: tuple[int, ...] | None = None
    """Decoder layers, counted from 0, that get a cross-attention layer before them, in place of that rule."""

    def layers_of(self, n_layers: int) -> list[int]:
        """The decoder layers that get a cross-attention layer before them.

        Raises:
            UserError: more than the decoder of `n_layers` has, or `placed` is not rising or beyond it.
        """
        if self.placed is None:
            return cross_attention_layers(n_layers, self.cross_layers)
        if not self.placed or sorted({*self.placed} & {*range(n_layers)}) != list(self.placed):
            raise UserError(
                f"cross-attention layers before decoder layers {list(self.placed)}; expected rising numbers from 0 to "
                f"{n_layers - 1}"
            )
        return list(self.placed)


class ImageAdapter(nn.Module):
    """Projector and cross-attention layers for one decoder.

    Args:
        config: sizes.
        decoder: sizes of the decoder.
        feature_dim: C of the image encoder's features.

    Raises:
        UserError: heads that are no multiple of the key/value heads, or layers that the decoder does not have.
    """

    def __init__(self, config: ImageAdapterConfig, *, decoder: DecoderSizes, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        self.projector = nn.Linear(feature_dim, decoder.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = CrossLayers(config, decoder=decoder, placed=config.layers_of(decoder.layers))

    def memory(self, features: ImageFeatures, batch: MediaBatch) -> AdapterMemory:
        """Keys and values for every row of the batch, from the features [N, C] of its pictures."""
        return self.layers.memory(self.dropout(self.projector(features.tokens)), features.lengths, batch)
