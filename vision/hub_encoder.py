"""Any plain vision transformer of `transformers` as image encoder: CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3 and kin.

Same interface as `vision.encoder.ImageEncoder`: `forward(TileBatch) -> ImageFeatures`, `tile_size`, `tokens_per_tile`,
`feature_dim`, `forward_intermediates`. Each tile is encoded alone at one fixed size, so nothing is padded and a
picture's features never depend on its neighbours. What truly differs between families is data: the table `FAMILIES`.

Legend: T tiles, L tokens of a tile (as the model orders them), D width of the model, C = D * (1 + taps).
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel

from multimodal.errors import UserError
from multimodal.hub_encoder import HubEncoder, layer_stack, read_model
from vision.encoder import ImageFeatures, expect_tile_size, resolve_taps
from vision.tiling import CLIP_MEAN, CLIP_STD, RGB, TileBatch


@dataclass(frozen=True)
class HubEncoderConfig:
    """Which vision encoder to take, and how to read it."""

    name: str
    """Hub name or folder."""
    tile_size: int | None = None
    """Pixels; None: the size it was trained at."""
    taps: tuple[int, ...] | None = None
    """Layer outputs, counted from 1, that join the final features; None: the paper's relative depths."""
    tap_norm: bool = True
    """A LayerNorm on each tap (spec A2.6.3)."""


def _as_image(pixels: Tensor, _patch: int) -> dict[str, Any]:
    return {"pixel_values": pixels}


def _as_patches(pixels: Tensor, patch: int) -> dict[str, Any]:
    """Patches as rows of (y, x, channel) values with the grid they came from: the input of variable-resolution
    models.
    """
    side = pixels.shape[-1] // patch
    patches = pixels.unflatten(3, (side, patch)).unflatten(2, (side, patch)).permute(0, 2, 4, 3, 5, 1)
    patches = patches.reshape(len(pixels), side * side, -1)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device),
        "spatial_shapes": torch.full((len(pixels), 2), side, device=pixels.device),
    }


@dataclass(frozen=True)
class Family:
    """What a family of models does in its own way.

    final_norm: module to apply to `last_hidden_state`, where the model normalises its pooled vector alone. inputs:
    tiles to keyword arguments. image_size: native tile size in pixels from the model's config. jitter: settings of
    random positions in training, which are taken out: tiles have one size, and what is random is drawn for the batch.
    """

    final_norm: str | None = None
    inputs: Callable[[Tensor, int], dict[str, Any]] = _as_image
    image_size: Callable[[Any], int] = lambda config: config.image_size
    jitter: tuple[str, ...] = ()


FAMILIES = {
    "clip_vision_model": Family(final_norm="post_layernorm"),
    "siglip2_vision_model": Family(
        inputs=_as_patches, image_size=lambda config: round(config.num_patches**0.5) * config.patch_size
    ),
    "dinov3_vit": Family(jitter=("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")),
}


class HubImageEncoder(HubEncoder):
    """A vision transformer of `transformers`, read at several depths (spec A2.1 for the taps).

    Args:
        model: a vision model, or one with a vision tower (CLIP, SigLIP ...), of which the tower alone is kept.
        tile_size, taps, tap_norm: as in `HubEncoderConfig`.
        pixel_mean, pixel_std: how the model wants its pixels normalised; give them to `Tiling(mean=, std=)`.

    Raises:
        UserError: the model is not a plain vision transformer, or the tile size or taps do not fit it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        tile_size: int | None = None,
        taps: tuple[int, ...] | None = None,
        tap_norm: bool = True,
        pixel_mean: RGB = CLIP_MEAN,
        pixel_std: RGB = CLIP_STD,
    ) -> None:
        tower: Any = model.get_encoder(modality="image")  # type: ignore[attr-defined]
        config = tower.config
        kind = config.model_type
        for field in ("hidden_size", "num_hidden_layers", "patch_size"):
            if not isinstance(getattr(config, field, None), int):
                raise UserError(
                    f"vision encoder: found {kind!r} without a plain {field}, expected a vision transformer"
                )
        super().__init__(tower, taps=resolve_taps(taps, config.num_hidden_layers), tap_norm=tap_norm)
        layer_stack(self.model)
        self.family = FAMILIES.get(kind, Family())
        for setting in self.family.jitter:
            setattr(config, setting, None)
        self.tile_size = tile_size or self.family.image_size(config)
        if self.tile_size % config.patch_size:
            raise UserError(
                f"vision encoder: tile_size {self.tile_size} is not a multiple of its patch_size {config.patch_size}"
            )
        self._resizes = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std

    @classmethod
    def from_pretrained(cls, config: HubEncoderConfig) -> "HubImageEncoder":
        """Load `config.name` from a folder or the hub, in fp32, with the pixel statistics of its processor.

        Raises:
            UserError: no such model, one that is not a plain vision transformer, or weights that do not fit its config.
        """
        loaded = read_model(config.name, what="vision encoder")
        mean, std = pixel_statistics(config.name)
        encoder = cls(
            loaded.model,
            tile_size=config.tile_size,
            taps=config.taps,
            tap_norm=config.tap_norm,
            pixel_mean=mean,
            pixel_std=std,
        )
        encoder.accept(loaded)
        return encoder

    @cached_property
    def tokens_per_tile(self) -> int:
        """Tokens the model gives for one tile (class token and registers included), counted on a blank one."""
        with torch.no_grad():
            return self.probe().shape[1]

    def probe(self) -> Tensor:
        """Final normed states [1, L, D] of a blank tile."""
        weight = next(self.model.parameters())
        return self._encode(torch.zeros(1, 3, self.tile_size, self.tile_size, device=weight.device))[0]

    def forward(self, batch: TileBatch) -> ImageFeatures:
        """Features of every picture: the model's final normed states first, then the taps.

        Raises:
            UserError: tiles of another size than `tile_size`.
        """
        final_TLD, taps = self.forward_intermediates(batch, self.tap_layers)
        tokens_TLC = self.join(final_TLD, taps)
        return ImageFeatures(tokens_TLC.flatten(0, 1), tuple(tiles * tokens_TLC.shape[1] for tiles in batch.lengths))

    def forward_intermediates(self, batch: TileBatch, layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Final normed states [T, L, D], and the raw outputs of `layers`, counted from 1."""
        expect_tile_size(batch, self.tile_size)
        return self._encode(batch.pixels, layers)

    def _encode(self, pixels: Tensor, layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        inputs = self.family.inputs(pixels, self.model.config.patch_size)
        if self._resizes:
            inputs["interpolate_pos_encoding"] = self.tile_size != self.family.image_size(self.model.config)
        final_TLD, taps = self.run(layers, **inputs)
        if self.family.final_norm:
            final_TLD = getattr(self.model, self.family.final_norm)(final_TLD)
        return final_TLD, taps


def pixel_statistics(name: str) -> tuple[RGB, RGB]:
    """Mean and std of the image processor beside a model; CLIP's where it has none."""
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return CLIP_MEAN, CLIP_STD
    mean, std = ((float(r), float(g), float(b)) for r, g, b in (processor.image_mean, processor.image_std))
    return mean, std
