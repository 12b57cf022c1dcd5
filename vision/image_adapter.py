"""The image adapter: a projector into the decoder's width, and gated cross-attention layers that read what it gives.

Llama 3 paper, section 7.2 / spec A4. One projection serves all layers.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multimodal.batch import MediaBatch
from multimodal.channel_statistics import channel_statistics
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

    @torch.no_grad()
    def normalise_features(self, chunks: Iterable[Tensor]) -> None:
        """Let the projector take features to mean 0 and deviation 1, channel by channel, before it projects (in place).

        Most of a feature may be what all patches of all pictures share; attention then tells them apart only late.

        Args:
            chunks: features [N, C] such as it will meet.

        Raises:
            ValueError: there are none.
        """
        mean_C, deviation_C = channel_statistics(chunks)
        weight_DC = self.projector.weight
        scaled_DC = weight_DC.double().cpu() / deviation_C.clamp(min=1e-3)  # a channel that never moves is not blown up
        weight_DC.copy_(scaled_DC)
        self.projector.bias.sub_((scaled_DC @ mean_C).to(weight_DC))

    def memory(self, features: ImageFeatures, batch: MediaBatch) -> AdapterMemory:
        """Keys and values for every row of the batch, from the features [N, C] of its pictures."""
        return self.layers.memory(self.dropout(self.projector(features.tokens)), features.lengths, batch)
