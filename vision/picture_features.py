"""Pictures whose features are kept, on their way to the adapter: as tiles with a key, or as what the frozen image
encoder made of them.

Each picture goes through the encoder for itself, so that its features are the same to the bit in any batch, from the
cache or not.

Legend: P tokens of a picture, C feature width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multimodal.data.feature_cache import FeatureCache, cache_key, file_key
from multimodal.hashing import weights_sha256
from multimodal.train.precision import Precision, autocast
from vision.clip_frames import join_features
from vision.encoder import ImageEncoder, ImageFeatures
from vision.hub_encoder import HubImageEncoder
from vision.picture import PictureSource, open_picture
from vision.tiling import Grid, Tiles, Tiling, batch_tiles


@dataclass(frozen=True)
class KeyedTiles(Tiles):
    """A picture whose features are to be kept under a key."""

    key: str


@dataclass(frozen=True)
class EncodedPicture:
    """What the encoder made of a picture: tokens [P, C], and the grid (rows, columns) of its tiles."""

    tokens: Tensor
    grid: Grid


@dataclass(frozen=True)
class PictureBatch:
    """Pictures of a batch, each for itself: as tiles or encoded."""

    pictures: tuple[Tiles | EncodedPicture, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def to(self, device: torch.device | str) -> "PictureBatch":
        def moved(picture: Tiles | EncodedPicture) -> Tiles | EncodedPicture:
            if isinstance(picture, EncodedPicture):
                return replace(picture, tokens=picture.tokens.to(device, non_blocking=True))
            return replace(picture, pixels=picture.pixels.to(device, non_blocking=True))

        return PictureBatch(tuple(moved(picture) for picture in self.pictures))


def encoder_key(encoder: ImageEncoder | HubImageEncoder) -> str:
    """All of an encoder that its features depend on: weights that are equal give others with other heads or taps."""
    shape = encoder.model.config.to_json_string() if isinstance(encoder, HubImageEncoder) else encoder.config
    return cache_key(weights_sha256(encoder), shape, encoder.tap_layers, encoder.tile_size)


class PictureFeatures:
    """Features of pictures that are files, by one frozen encoder, kept on disk (spec A5.5).

    Args:
        encoder: frozen; its weights as they are now are a part of every key.
        tiling: how pictures become tiles.
        cache: where features are kept.
        precision: that the encoder runs in.
    """

    def __init__(
        self, encoder: ImageEncoder | HubImageEncoder, tiling: Tiling, cache: FeatureCache, precision: Precision
    ) -> None:
        self.encoder, self.tiling, self.cache = encoder, tiling, cache
        self.precision: Precision = precision
        self._base = cache_key(encoder_key(encoder), tiling, precision)

    def prepare(self, source: PictureSource) -> Tiles | EncodedPicture:
        """A picture as features if they are kept already, else as tiles; without a key if it is no file.

        Raises:
            UserError: it cannot be read.
        """
        key = file_key(self._base, source)
        if key and (found := self.cache.load(key)) is not None:
            rows, columns = found["grid"].tolist()
            return EncodedPicture(found["tokens"], (rows, columns))
        tiles = self.tiling.tile(open_picture(source))
        return KeyedTiles(tiles.pixels, tiles.grid, key) if key else tiles

    def encode(self, batch: PictureBatch) -> ImageFeatures:
        """Features of all pictures; those that were computed now and have a key are kept."""
        return join_features(self._encode(picture) for picture in batch.pictures)

    @torch.no_grad()
    def _encode(self, picture: Tiles | EncodedPicture) -> ImageFeatures:
        if isinstance(picture, EncodedPicture):
            return ImageFeatures(picture.tokens, (len(picture.tokens),))
        training = self.encoder.training
        self.encoder.eval()
        try:
            with autocast(picture.pixels.device, self.precision):
                features = self.encoder(batch_tiles([picture]))
        finally:
            self.encoder.train(training)
        if isinstance(picture, KeyedTiles):
            self.cache.store(picture.key, {"tokens": features.tokens, "grid": torch.tensor(picture.grid)})
        return features
