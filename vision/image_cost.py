"""What the image parts cost, found on the meta device: encoder, projector, cross-attention layers in the decoder.

Legend: B samples, T text tokens, N tokens of all pictures, C feature width, S tile size in pixels.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from multimodal.batch import MediaBatch
from multimodal.decoder import FrozenDecoder
from multimodal.memory import CrossMemory
from multimodal.meta_decoder import cross_layers_cost, decoder_pieces, embeddings, run_decoder, run_memory
from multimodal.meta_run import META, PieceCost, Pieces, RunCost, trained
from multimodal.stage_cost import Workload
from vision.encoder import Block, ImageFeatures
from vision.image_modality import ImageModality
from vision.tiling import TileBatch, candidate_grids

STAGES: dict[str, tuple[str, ...]] = {
    "image: use": (),
    "image: adapter, encoder frozen": ("adapter", "gates"),
    "image: adapter and encoder": ("adapter", "gates", "encoder", "late"),  # the paper's (spec 0.1)
}
"""The parts of `ImageModality.parts` that each stage trains."""


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """The encoder's transformer blocks, many of which are alike."""
    return [module for module in encoder.modules() if isinstance(module, Block)]


def meta_tiles(pictures: int, tiles: int, size: int) -> TileBatch:
    """Pictures of so many tiles each, laid out as near to a square as can be."""
    grid = min((g for g in candidate_grids(tiles) if g[0] * g[1] == tiles), key=sum)
    return TileBatch(torch.empty(pictures * tiles, 3, size, size, device=META), [grid] * pictures)


def meta_media(items: Any, batch: int, tokens: int) -> MediaBatch:
    """One medium for each row, which all of its tokens see."""
    rows = tuple(((row, 1),) for row in range(batch))
    return MediaBatch(items, rows, torch.ones(batch, tokens, dtype=torch.long, device=META))


def image_run(
    image: ImageModality,
    decoder: FrozenDecoder,
    workload: Workload,
    *,
    train: Collection[str],
    dtype: torch.dtype | None = torch.bfloat16,
) -> RunCost:
    """A batch of pictures with text through all parts, on the meta device.

    Args:
        image: attached to the decoder.
        decoder: on the meta device.
        workload: sizes of the batch.
        train: which of `ImageModality.parts`; none = without any gradient.
        dtype: of products, as under autocast; None: that of the weights.
    """
    learning = [p for name in train for _, p in image.parts()[name]]
    with (
        trained(learning, image.parameters()),
        decoder_pieces(decoder, dtype, grad=bool(train), layers=blocks(image.encoder)) as pieces,
    ):
        cross = _forward(pieces, image, decoder, workload)
        return split_cross(pieces.finish(), cross)


def _forward(pieces: Pieces, image: ImageModality, decoder: FrozenDecoder, workload: Workload) -> PieceCost:
    encoder, adapter = image.encoder, image.adapter
    batch, text = workload.batch, workload.text_tokens
    tiles = meta_tiles(batch, workload.tiles or image.tiling.max_tiles, encoder.tile_size)
    learns = torch.is_grad_enabled() and any(p.requires_grad for p in encoder.parameters())

    def encode() -> list[Tensor]:
        with torch.set_grad_enabled(learns):
            return [encoder(tiles).tokens]

    (tokens_NC,) = pieces.run("image encoder", encode)
    lengths = tuple(count * encoder.tokens_per_tile for count in tiles.lengths)
    media, features = meta_media(tiles, batch, text), ImageFeatures(tokens_NC, lengths)
    memory = run_memory(pieces, "projector, keys and values", lambda: adapter.memory(features, media))
    cross = cross_layers_cost(adapter.layers, decoder, memory, text)
    losses = text if torch.is_grad_enabled() else 0
    run_decoder(pieces, decoder, embeddings(decoder, batch, text), CrossMemory({image.kind: memory}), losses=losses)
    return cross


def split_cross(cost: RunCost, cross: PieceCost) -> RunCost:
    """The cross-attention layers as a piece of their own, apart from the decoder that they run in."""
    pieces: list[PieceCost] = []
    for piece in cost.pieces:
        if piece.name == "decoder":
            forward, backward = piece.forward - cross.forward, piece.backward - cross.backward
            pieces += [cross, replace(piece, forward=forward, backward=backward)]
        else:
            pieces.append(piece)
    return replace(cost, pieces=tuple(pieces))


def modules(image: ImageModality) -> dict[str, nn.Module]:
    """The parts as they are told apart in a table."""
    return {
        "image encoder": image.encoder,
        "image projector": image.adapter.projector,
        "image cross-attention": image.adapter.layers,
    }
