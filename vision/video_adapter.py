"""The video adapter: the temporal aggregator, and gated cross-attention layers of its own that read what it gives.

Llama 3 paper, section 7.3 / spec A5. The layers stand directly before some of the image adapter's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from multimodal.decoder_sizes import DecoderSizes
from multimodal.errors import UserError
from multimodal.placement import every_nth
from vision.cross_layers import CrossLayers, CrossLayersConfig
from vision.encoder import ImageFeatures
from vision.image_adapter import ImageAdapter
from vision.temporal_aggregator import TemporalAggregator, TemporalAggregatorConfig


@dataclass(frozen=True, kw_only=True)
class VideoAdapterConfig(CrossLayersConfig):
    """Sizes of the aggregator and of the cross-attention layers; 0 takes the decoder's own size."""

    aggregator: TemporalAggregatorConfig = field(default_factory=TemporalAggregatorConfig)
    every: int = 4
    """A video layer stands before every so many image cross-attention layers, counting back from the last."""
    dropout: float = 0.0
    """Dropout on the merged frames, in training."""


class VideoAdapter(nn.Module):
    """Aggregator and cross-attention layers for one decoder.

    Args:
        config: sizes.
        decoder: sizes of the decoder.
        feature_dim: C of the image encoder's features.
        image_layers: layers of the decoder before which the image adapter's stand, rising.

    Raises:
        UserError: sizes that do not fit.
    """

    def __init__(
        self, config: VideoAdapterConfig, *, decoder: DecoderSizes, feature_dim: int, image_layers: Sequence[int]
    ) -> None:
        super().__init__()
        self.config = config
        self.aggregator = TemporalAggregator(config.aggregator, feature_dim=feature_dim, out_dim=decoder.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = CrossLayers(config, decoder=decoder, placed=every_nth(image_layers, config.every))

    def begin_as(self, image: ImageAdapter) -> None:
        """Read clips as the image adapter reads pictures, each group of frames as its mean, until training adds to it.

        Raises:
            UserError: layers of other sizes, or an aggregator whose latents do not start from the frames.
        """
        if self.aggregator.proj_mean is None:
            raise UserError(
                "--video.adapter.aggregator.start is latents: expected frames, to begin as the image adapter"
            )
        try:
            for name, layer in self.layers.items():
                layer.load_state_dict(image.layers[name].state_dict())
        except RuntimeError as error:
            raise UserError(
                "video layers of other sizes than the image adapter's, as which they are to begin: expected its "
                "--video.adapter.heads, --video.adapter.kv-heads and --video.adapter.ffn"
            ) from error
        self.aggregator.begin_as_projector(image.projector)

    def merge(self, features: ImageFeatures, *, frames: Sequence[int], times: Tensor) -> ImageFeatures:
        """The tokens of each clip, in the decoder's width; arguments as for the aggregator."""
        merged = self.aggregator(features, frames=frames, times=times)
        return ImageFeatures(self.dropout(merged.tokens), merged.lengths)
