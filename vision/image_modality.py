"""Pictures as a modality of `MultimodalModel`: tiling, image encoder and image adapter in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from multimodal.batch import MediaBatch
from multimodal.data.feature_cache import FeatureCache
from multimodal.decoder import FrozenDecoder
from multimodal.decoder_sizes import DecoderSizes, decoder_sizes
from multimodal.errors import UserError
from multimodal.memory import AdapterMemory
from multimodal.model import MultimodalModel
from multimodal.train.precision import Precision
from vision.cross_layers import gate_values, own_columns, split_gates
from vision.encoder import ImageEncoder, ImageEncoderConfig, ImageFeatures
from vision.encoder_folder import load_encoder
from vision.hub_encoder import HubEncoderConfig, HubImageEncoder
from vision.image_adapter import ImageAdapter, ImageAdapterConfig
from vision.picture import PictureSource, open_picture
from vision.picture_features import EncodedPicture, PictureBatch, PictureFeatures
from vision.tiling import TileBatch, Tiles, Tiling, batch_tiles


@dataclass(frozen=True)
class EncoderOptions(ImageEncoderConfig):
    """The image encoder: Graft's own with these sizes, or one of `transformers` by name."""

    name: str = ""
    """Hub name or folder of a vision encoder of transformers (CLIP, SigLIP, DINOv2 ...); empty: Graft's own."""
    weights: Path | None = None
    """Folder written by pretrain_image_encoder to start from, or "builtin"; its sizes must be these."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How pictures reach the decoder."""

    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    adapter: ImageAdapterConfig = field(default_factory=ImageAdapterConfig)
    stretch: bool = False
    """Fill the tiles and ignore the aspect ratio, for pictures that were squashed to squares."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ImageConfig":
        """The inverse of `to_dict`.

        Raises:
            UserError: settings are missing, or there are others.
        """
        try:
            encoder = dict(values["encoder"])
            encoder["taps"] = None if encoder["taps"] is None else tuple(encoder["taps"])
            adapter = dict(values["adapter"])
            placed = adapter.get("placed")
            adapter["placed"] = None if placed is None else tuple(placed)
            return cls(
                encoder=EncoderOptions(**encoder),
                adapter=ImageAdapterConfig(**adapter),
                stretch=values["stretch"],
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"image settings of the adapter: {error}; expected what save_pretrained wrote") from error

    def to_dict(self) -> dict[str, Any]:
        """For `adapter_config.json`. Where the encoder's first weights came from does not matter afterwards."""
        values = asdict(self)
        values["encoder"]["weights"] = None
        return values


class ImageModality(nn.Module):
    """Image encoder, image adapter and the tiling that goes with them.

    Args:
        config: sizes, or the name of an encoder.
        sizes: of the decoder.

    Raises:
        UserError: the encoder cannot be loaded, or does not fit the sizes.
    """

    kind = "image"
    joins = "cross-attention"

    def __init__(self, config: ImageConfig, sizes: DecoderSizes) -> None:
        super().__init__()
        self.config = config
        options = config.encoder
        self.encoder: ImageEncoder | HubImageEncoder
        if options.name:
            if options.numerics != "strict":
                raise UserError(f"numerics {options.numerics!r} for {options.name}; only Graft's own encoder has those")
            # The built-in tile size means nothing to a foreign encoder: its own is taken.
            self.encoder = HubImageEncoder.from_pretrained(
                HubEncoderConfig(options.name, taps=options.taps, tap_norm=options.tap_norm)
            )
        else:
            self.encoder = ImageEncoder(options)
            if options.weights is not None:
                load_encoder(self.encoder, options.weights)
        self.adapter = ImageAdapter(config.adapter, decoder=sizes, feature_dim=self.encoder.feature_dim)
        self.tiling = self._tiling()
        self.kept: PictureFeatures | None = None

    @classmethod
    def create(cls, config: ImageConfig | Mapping[str, Any], decoder: FrozenDecoder) -> "ImageModality":
        """For a decoder, from a configuration or what `to_dict` made of one."""
        config = config if isinstance(config, ImageConfig) else ImageConfig.from_dict(config)
        return cls(config, decoder_sizes(decoder))

    def _tiling(self) -> Tiling:
        return Tiling(
            tile_size=self.encoder.tile_size,
            max_tiles=self.config.encoder.max_tiles,
            stretch=self.config.stretch,
            mean=self.encoder.pixel_mean,
            std=self.encoder.pixel_std,
        )

    def expect_resizable(self, tile_size: int) -> None:
        """Raises UserError unless `resize_tiles` can go on at it: not below this one, and with Graft's own encoder."""
        if not isinstance(self.encoder, ImageEncoder):
            raise UserError(f"tile size {tile_size}: the tile size of {self.config.encoder.name} is fixed")
        if tile_size < self.encoder.tile_size:
            raise UserError(f"tile size {tile_size}: expected {self.encoder.tile_size}, as it is now, or more")
        replace(self.encoder.config, tile_size=tile_size)  # it refuses what no patches fit into

    def resize_tiles(self, tile_size: int) -> None:
        """Go on at another tile size (annealing at higher resolution, spec A4.6); positions are interpolated.

        Raises:
            UserError: as `expect_resizable`.
        """
        self.expect_resizable(tile_size)
        assert isinstance(self.encoder, ImageEncoder)
        self.encoder = self.encoder.resized(tile_size)
        self.config = replace(self.config, encoder=replace(self.config.encoder, tile_size=tile_size))
        self.tiling = self._tiling()

    def use_cache(self, cache: FeatureCache | None, *, precision: Precision = "fp32") -> None:
        """Keep features of pictures that are files on disk. The encoder must stay as it is meanwhile: frozen."""
        self.kept = None if cache is None else PictureFeatures(self.encoder, self.tiling, cache, precision)

    def prepare(self, source: PictureSource) -> Tiles | EncodedPicture:
        """A picture, from a path or in memory, as tiles; as features if they are kept.

        Raises:
            UserError: it cannot be read.
        """
        return self.tiling.tile(open_picture(source)) if self.kept is None else self.kept.prepare(source)

    def blank(self, item: Tiles | EncodedPicture) -> Tiles:
        """As many tiles with nothing on them, for the blank control."""
        rows, columns = item.grid
        return Tiles(torch.zeros(rows * columns, 3, self.tiling.tile_size, self.tiling.tile_size), item.grid)

    def span(self, item: Tiles | EncodedPicture, placeholder: int) -> list[int]:
        """The tokens that a picture takes in the prompt: one, whatever its size."""
        return [placeholder]

    def collate(self, items: Sequence[Tiles | EncodedPicture]) -> TileBatch | PictureBatch:
        plain = [item for item in items if type(item) is Tiles]
        return batch_tiles(plain) if len(plain) == len(items) else PictureBatch(tuple(items))

    def memory(self, batch: MediaBatch) -> dict[str, AdapterMemory]:
        """Keys and values of a batch of pictures, for the image layers. A frozen encoder runs without gradient."""
        features = self._features(batch.items)
        memory = self.adapter.memory(features, batch)
        if self.config.encoder.numerics == "reference":
            memory = replace(memory, memory_column=own_columns(features.lengths, batch))
        return {self.kind: memory}

    def _features(self, items: TileBatch | PictureBatch) -> ImageFeatures:
        if isinstance(items, PictureBatch):
            if self.kept is None:
                raise ValueError("pictures that are to be kept or were, but no cache; expected use_cache first")
            return self.kept.encode(items)
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in self.encoder.parameters())
        with torch.set_grad_enabled(trained):
            return self.encoder(items)

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables: the adapter's gates, the rest of the adapter, and the encoder's parts (`late`: tile positions,
        global layers, norms of the taps; none in an encoder of transformers).
        """
        gates, adapter = split_gates(self.adapter)
        return {
            "adapter": [(f"adapter.{n}", p) for n, p in adapter],
            "gates": [(f"adapter.{n}", p) for n, p in gates],
            **self.encoder.parts(),
        }

    def log_values(self) -> dict[str, float]:
        """tanh of each gate; growing gates with a flat loss mean that the learning rate is too high (spec A4.7.5)."""
        return {f"gate.{name}": value for name, value in gate_values(self.adapter).items()}


def image_of(model: MultimodalModel) -> ImageModality:
    """The image modality of a model.

    Raises:
        UserError: it has none.
    """
    if "image" not in model.modalities:
        found = ", ".join(model.modalities) or "nothing"
        raise UserError(f"{model.loaded_from or 'the model'}: an adapter for {found}; expected one for images")
    return cast(ImageModality, model.modalities["image"])
