"""The image encoder: a vision transformer over all tiles of a picture, with features from several depths.

Llama 3 paper, section 7.2 / spec A2: a plain ViT (trained contrastively), then a few gated global layers that start as
the identity; the final features are joined with those after chosen layers ("taps"), because contrastive encoders lose
fine localisation in their last layers. All tiles of one picture attend to each other. Pictures with equally many tiles
run together, the others in their own group: there is no padding and no mask, unless the numerics of the released model
are asked for (`vision.tile_layout`). In either case a picture's features never depend on its neighbours.

Legend: T tiles of the batch, M pictures of a group, n tiles of each, L tokens of a tile (class token, then patches), D
width, C = D * (1 + taps) feature width, P tokens of a picture (n * L), h heads, K head width, S tile size in pixels.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from multimodal.attention import attend
from multimodal.errors import UserError
from multimodal.layers import Encoder, TanhGate, expect_taps
from vision.positions import GatedPositions, GatedTileEmbedding
from vision.tile_layout import Numerics, TileLayout, lay_out, tiles_by_count
from vision.tiling import CLIP_MEAN, CLIP_STD, TileBatch


def paper_taps(layers: int) -> tuple[int, ...]:
    """The paper's taps, after layers 4, 8, 16, 24 and 31 of 32, at the same relative depths of `layers` (spec 0.2)."""
    depths = [math.floor(layers * k / 32 + 0.5) for k in (4, 8, 16, 24)] + [layers - 1]
    return tuple(sorted({min(depth, layers - 1) for depth in depths} - {0}))


def resolve_taps(taps: Sequence[int] | None, layers: int) -> tuple[int, ...]:
    """The layers to tap, counted from 1; the paper's where `taps` is None.

    Raises:
        UserError: as `expect_taps`.
    """
    return paper_taps(layers) if taps is None else expect_taps(taps, layers, what="image encoder")


def expect_tile_size(batch: TileBatch, size: int) -> None:
    """Raises UserError unless the tiles are `size` x `size` pixels."""
    if batch.pixels.shape[-2:] != (size, size):
        found = " x ".join(map(str, batch.pixels.shape[-2:]))
        raise UserError(f"image encoder: found tiles of {found} pixels, expected {size} x {size}")


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Shape of an image encoder (Llama 3 paper, section 7.2 / spec 0.2)."""

    tile_size: int = 64
    """Side of a tile, in pixels."""
    patch_size: int = 8
    """Side of a patch, in pixels."""
    width: int = 192
    layers: int = 8
    global_layers: int = 2
    """Gated layers on top, which start as the identity."""
    heads: int = 6
    mlp_ratio: float = 4
    taps: tuple[int, ...] | None = None
    """Layer outputs, counted from 1, that join the final features; None: the paper's relative depths."""
    max_tiles: int = 4
    stem: Literal["patch", "conv"] = "patch"
    """patch: the paper's patch convolution; conv: strided 3 x 3 convolutions, which learn faster from few pictures."""
    drop_path: float = 0.0
    """Highest rate of dropped residual branches, in training; it rises with depth."""
    tap_norm: bool = True
    """A LayerNorm on each tap (spec A2.6.3)."""
    numerics: Numerics = "strict"
    """strict: nothing sees padding; reference: padded as in the released Llama 3.2 Vision, for weights from there."""

    def __post_init__(self) -> None:
        size, patch, halvings = self.tile_size, self.patch_size, self.patch_size.bit_length() - 1
        conv_fits = patch > 1 and patch == 1 << halvings and self.width % (1 << halvings - 1) == 0
        wrong = {
            f"tile_size {size} is not a multiple of patch_size {patch}": size < 1 or patch < 1 or size % patch,
            f"width {self.width} does not divide into {self.heads} heads": self.heads < 1 or self.width % self.heads,
            f"layers {self.layers}, expected 1 or more": self.layers < 1,
            f"global_layers {self.global_layers}, expected 0 or more": self.global_layers < 0,
            f"max_tiles {self.max_tiles}, expected 1 or more": self.max_tiles < 1,
            f"drop_path {self.drop_path}, expected 0 <= drop_path < 1": not 0 <= self.drop_path < 1,
            f"stem {self.stem!r}, expected 'patch' or 'conv'": self.stem not in ("patch", "conv"),
            f"numerics {self.numerics!r}, expected 'strict' or 'reference'": self.numerics
            not in ("strict", "reference"),
            f"patch_size {patch}: the conv stem needs a power of 2 that divides twice the width {self.width}": (
                self.stem == "conv" and not conv_fits
            ),
        }
        for what, holds in wrong.items():
            if holds:
                raise UserError(f"image encoder: {what}")
        resolve_taps(self.taps, self.layers)

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """Layers whose outputs are tapped, counted from 1."""
        return resolve_taps(self.taps, self.layers)

    @property
    def patch_side(self) -> int:
        """Patches along one edge of a tile."""
        return self.tile_size // self.patch_size


@dataclass(frozen=True)
class ImageFeatures:
    """Features of several pictures, end to end: `tokens` [sum P, C] and the number of tokens P of each picture."""

    tokens: Tensor
    lengths: tuple[int, ...]

    def split(self) -> tuple[Tensor, ...]:
        """Tokens [P, C] of each picture."""
        return self.tokens.split(self.lengths)


class Block(nn.Module):
    """Pre-norm transformer block, attention without biases (spec A2.3).

    gated: both branches behind tanh gates at zero. depth: number of blocks in the stack, which scales the branches'
    output weights down. drop_path: rate of dropping a branch for a whole row of the batch, in training.
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        mlp_ratio: float = 4,
        depth: int = 1,
        gated: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = heads
        hidden = round(width * mlp_ratio)
        self.norm_attention = nn.LayerNorm(width, eps=1e-5)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-5)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.gate_attention = TanhGate() if gated else nn.Identity()
        self.gate_mlp = TanhGate() if gated else nn.Identity()
        self.drop_path = StochasticDepth(drop_path, mode="row")
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=(2 * depth * width) ** -0.5)
        nn.init.normal_(self.mlp[0].weight, std=(2 * width) ** -0.5)  # pyright: ignore[reportArgumentType]
        nn.init.normal_(self.mlp[2].weight, std=(2 * depth * width) ** -0.5)  # pyright: ignore[reportArgumentType]
        for linear in (self.mlp[0], self.mlp[2]):
            nn.init.zeros_(linear.bias)  # pyright: ignore[reportArgumentType]

    def attention(self, x_MPD: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x_MPD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v, mask=mask).transpose(1, 2).flatten(2))

    def forward(self, x_MPD: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask`: bool, broadcastable to [M, h, P, P], True where a row may look; every row must see something."""
        x_MPD = x_MPD + self.drop_path(self.gate_attention(self.attention(self.norm_attention(x_MPD), mask)))
        return x_MPD + self.drop_path(self.gate_mlp(self.mlp(self.norm_mlp(x_MPD))))


class PatchStem(nn.Conv2d):
    """One convolution, patch by patch (the paper's): [T, 3, S, S] -> [T, D, side, side]."""

    def __init__(self, *, patch_size: int, width: int) -> None:
        super().__init__(3, width, kernel_size=patch_size, stride=patch_size, bias=False)


class ConvStem(nn.Sequential):
    """Stride-2 3 x 3 convolutions down to the patch grid, doubling in width (Xiao et al. 2021, "Early convolutions").

    The norms are taken over one tile (GroupNorm with one group): batch statistics would let tiles see each other.
    """

    def __init__(self, *, patch_size: int, width: int) -> None:
        steps = patch_size.bit_length() - 1
        layers: list[nn.Module] = []
        before = 3
        for step in reversed(range(steps)):
            after = width >> step
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.GroupNorm(1, after), nn.ReLU()]
            before = after
        super().__init__(*layers, nn.Conv2d(before, width, 1))


STEMS = {"patch": PatchStem, "conv": ConvStem}


class ImageEncoder(Encoder):
    """Vision transformer over the tiles of each picture (Llama 3 paper, section 7.2 / spec A2).

    Example:
        encoder = ImageEncoder(ImageEncoderConfig(tile_size=64, patch_size=8))
        features = encoder(batch)                       # ImageFeatures, tokens [sum P, encoder.feature_dim]
    """

    pixel_mean, pixel_std = CLIP_MEAN, CLIP_STD

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        width, layers, tiles = config.width, config.layers, config.max_tiles
        padded = config.numerics == "reference"
        self.stem = STEMS[config.stem](patch_size=config.patch_size, width=width)
        self.class_token_D = nn.Parameter(torch.randn(width) * width**-0.5)
        self.pre_tile = GatedTileEmbedding(max_tiles=tiles, width=width, padded=padded)
        self.positions = GatedPositions(max_tiles=tiles, side=config.patch_side, width=width, padded=padded)
        self.norm_pre = nn.LayerNorm(width, eps=1e-5)
        self.layers = nn.ModuleList(
            Block(
                width=width,
                heads=config.heads,
                mlp_ratio=config.mlp_ratio,
                depth=layers,
                drop_path=config.drop_path * i / max(1, layers - 1),
            )
            for i in range(layers)
        )
        self.norm_post = nn.LayerNorm(width, eps=1e-5)
        self.post_tile = GatedTileEmbedding(max_tiles=tiles, width=width, padded=padded)
        self.global_layers = nn.ModuleList(
            Block(width=width, heads=config.heads, mlp_ratio=config.mlp_ratio, depth=config.global_layers, gated=True)
            for _ in range(config.global_layers)
        )
        self.tap_norms = nn.ModuleList(
            nn.LayerNorm(width, eps=1e-5) if config.tap_norm else nn.Identity() for _ in config.tap_layers
        )

    @property
    def tile_size(self) -> int:
        return self.config.tile_size

    @property
    def tap_layers(self) -> tuple[int, ...]:
        """Layers whose outputs join the final features, counted from 1."""
        return self.config.tap_layers

    @property
    def tokens_per_tile(self) -> int:
        """Class token and patches."""
        return self.config.patch_side**2 + 1

    @property
    def feature_dim(self) -> int:
        """C: width of a token of `ImageFeatures`."""
        return self.config.width * (1 + len(self.config.tap_layers))

    def forward(self, batch: TileBatch) -> ImageFeatures:
        """Features of every picture: after the global layers first, then the taps (spec A2.2, A2.6).

        Raises:
            UserError: tiles of another size, or a grid of more than `max_tiles` tiles.
        """
        layout = self._layout(batch)
        final_TLD, taps = self._plain(layout, self.config.tap_layers)
        final_TLD = self.post_tile(final_TLD, layout.rows_T)
        final_TLD, _ = self._run(self.global_layers, final_TLD, layout)
        normed = [norm(layout.real(tap_TLD)) for norm, tap_TLD in zip(self.tap_norms, taps, strict=True)]
        tokens = torch.cat([layout.real(final_TLD), *normed], dim=-1).flatten(0, 1)
        return ImageFeatures(tokens, tuple(tiles * self.tokens_per_tile for tiles in batch.lengths))

    def forward_intermediates(self, batch: TileBatch, layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """The plain ViT alone: its post-norm final state [T, L, D], and the raw outputs of `layers`, counted from 1."""
        layout = self._layout(batch)
        final_TLD, kept = self._plain(layout, layers)
        return layout.real(final_TLD), [layout.real(state_TLD) for state_TLD in kept]

    def pool(self, batch: TileBatch) -> Tensor:
        """One vector [pictures, D] for contrastive learning: the post-norm class token, averaged over the tiles.

        The global layers take no part: they join after the contrastive pre-training (spec 0.1).
        """
        return self.tokens_and_pool(batch)[1]

    def tokens_and_pool(self, batch: TileBatch, *, dropped: float = 0.0) -> tuple[tuple[Tensor, ...], Tensor]:
        """The plain ViT's post-norm tokens [P, D] of each picture, and what `pool` makes of them.

        `dropped`: share of the patches of each tile, drawn at random, that are left out (Li et al. 2023, "Scaling
        language-image pre-training via masking").
        """
        layout = self._layout(batch)
        final_TLD, _ = self._plain(layout, (), dropped=dropped)
        tiles = layout.real(final_TLD).split(batch.lengths)
        return tuple(t.flatten(0, 1) for t in tiles), torch.stack([t[:, 0].mean(dim=0) for t in tiles])

    def late_parameters(self) -> list[nn.Parameter]:
        """Those that the plain ViT does without, so that contrastive pre-training does not move them.

        Call `positions.stretch_local_()` afterwards: tile-specific positions then start from the learned local ones.
        """
        modules = (self.pre_tile, self.post_tile, self.global_layers, self.tap_norms, self.positions.gate)
        return [self.positions.tiled_RLD, *(parameter for module in modules for parameter in module.parameters())]

    def resized(self, tile_size: int) -> "ImageEncoder":
        """A copy for another tile size: positions are interpolated, all else is equal (spec A2.4)."""
        config = replace(self.config, tile_size=tile_size)
        new = copy.deepcopy(self)
        new.config = config
        new.positions = self.positions.resized(config.patch_side)
        return new

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.gradient_checkpointing = True

    def _layout(self, batch: TileBatch) -> TileLayout:
        expect_tile_size(batch, self.tile_size)
        most, numerics = self.config.max_tiles, self.config.numerics
        return lay_out(batch, max_tiles=most, tokens_per_tile=self.tokens_per_tile, numerics=numerics)

    def _plain(self, layout: TileLayout, layers: Sequence[int], *, dropped: float = 0.0) -> tuple[Tensor, list[Tensor]]:
        """`forward_intermediates`, padding included, without some patches."""
        x_TLD = self.stem(layout.pixels).flatten(2).transpose(1, 2)
        x_TLD = self.pre_tile(x_TLD, layout.rows_T)
        x_TLD = torch.cat([self.class_token_D.expand(len(x_TLD), 1, -1), x_TLD], dim=1)
        x_TLD = x_TLD + self.positions(layout.rows_T)
        if dropped:
            x_TLD = _some_patches(x_TLD, kept=max(1, round((1 - dropped) * (x_TLD.shape[1] - 1))))
        x_TLD = layout.pad(self.norm_pre(x_TLD))
        x_TLD, kept = self._run(self.layers, x_TLD, layout, keep=layers)
        return self.norm_post(x_TLD), kept

    def _run_block(self, block: nn.Module, x_MPD: Tensor, mask_M1PP: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, x_MPD, mask_M1PP, use_reentrant=False))
        return block(x_MPD, mask_M1PP)

    def _run(
        self, blocks: nn.ModuleList, x_TLD: Tensor, layout: TileLayout, keep: Sequence[int] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Run blocks over whole pictures, and also return the outputs of the blocks `keep`, counted from 1."""
        groups = tiles_by_count(layout.counts)
        index = {count: torch.tensor(tiles, device=x_TLD.device) for count, tiles in groups.items()}
        outputs: list[list[Tensor]] = []
        for count, tiles_G in index.items():
            x_MPD = (x_TLD if len(groups) == 1 else x_TLD[tiles_G]).unflatten(0, (-1, count)).flatten(1, 2)
            kept: dict[int, Tensor] = {}
            for number, block in enumerate(blocks, start=1):
                x_MPD = self._run_block(block, x_MPD, layout.mask_M1PP)
                if number in keep:
                    kept[number] = x_MPD
            outputs.append([state.reshape(-1, *x_TLD.shape[1:]) for state in (x_MPD, *(kept[n] for n in keep))])
        if len(groups) == 1:
            return outputs[0][0], outputs[0][1:]
        back_T = torch.cat(list(index.values())).argsort()
        final_TLD, *taps = (torch.cat(states)[back_T] for states in zip(*outputs, strict=True))
        return final_TLD, taps


def _some_patches(x_TLD: Tensor, *, kept: int) -> Tensor:
    """The class token and `kept` patches of each tile, drawn at random, in order: [T, L, D] -> [T, 1 + kept, D]"""
    drawn_TL = torch.rand(x_TLD.shape[0], x_TLD.shape[1] - 1, device=x_TLD.device)
    chosen_TL = drawn_TL.topk(kept, dim=1).indices.sort(dim=1).values + 1
    index_TL = F.pad(chosen_TL, (1, 0))
    return x_TLD.gather(1, index_TL[..., None].expand(-1, -1, x_TLD.shape[2]))
