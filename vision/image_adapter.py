"""The image adapter: a projector into the decoder's width, and gated cross-attention layers that read what it gives.

Llama 3 paper, section 7.2 / spec A4. One projection serves all layers.
"""

from dataclasses import dataclass

from torch import nn

from multimodal.batch import MediaBatch
from multimodal.decoder_sizes import DecoderSizes
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


class ImageAdapter(nn.Module):
    """Projector and cross-attention layers for one decoder.

    Args:
        config: sizes.
        decoder: sizes of the decoder.
        feature_dim: C of the image encoder's features.

    Raises:
        UserError: heads that are no multiple of the key/value heads, or more layers than the decoder has.
    """

    def __init__(self, config: ImageAdapterConfig, *, decoder: DecoderSizes, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        placed = cross_attention_layers(decoder.layers, config.cross_layers)
        self.projector = nn.Linear(feature_dim, decoder.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = CrossLayers(config, decoder=decoder, placed=placed)

    def memory(self, features: ImageFeatures, batch: MediaBatch) -> AdapterMemory:
        """Keys and values for every row of the batch, from the features [N, C] of its pictures."""
        return self.layers.memory(self.dropout(self.projector(features.tokens)), features.lengths, batch)
