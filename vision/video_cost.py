"""What the video parts cost, found on the meta device: frames through the frozen image encoder, temporal aggregator,
cross-attention layers in the decoder.

Legend: N tokens of all frames, C feature width.
"""

from collections.abc import Collection
from fractions import Fraction

import torch
from torch import nn

from multimodal.decoder import FrozenDecoder
from multimodal.memory import AdapterMemory, CrossMemory
from multimodal.meta_decoder import cross_layers_cost, decoder_pieces, embeddings, run_decoder, run_memory
from multimodal.meta_run import META, PieceCost, Pieces, RunCost, trained
from multimodal.stage_cost import Workload
from vision.encoder import ImageFeatures
from vision.image_cost import blocks, meta_media, meta_tiles, split_cross
from vision.video_modality import KEPT_DTYPE, VideoModality

STAGES: dict[str, tuple[str, ...]] = {
    "video: use": (),
    "video: adapter": ("aggregator", "video", "video_gates"),
}
"""The parts of `VideoModality.parts` that each stage trains."""


def video_run(
    video: VideoModality,
    decoder: FrozenDecoder,
    workload: Workload,
    *,
    train: Collection[str],
    dtype: torch.dtype | None = torch.bfloat16,
) -> RunCost:
    """A batch of clips with text through all parts, on the meta device; arguments as for `image_run`."""
    learning = [p for name in train for _, p in video.parts()[name]]
    frozen = [*video.parameters(), *video.image.parameters()]
    with (
        trained(learning, frozen),
        decoder_pieces(decoder, dtype, grad=bool(train), layers=blocks(video.image.encoder)) as pieces,
    ):
        cross = _forward(pieces, video, decoder, workload)
        return split_cross(pieces.finish(), cross)


def _forward(pieces: Pieces, video: VideoModality, decoder: FrozenDecoder, workload: Workload) -> PieceCost:
    encoder, config = video.image.encoder, video.config
    batch, text, frames = workload.batch, workload.text_tokens, workload.frames or config.frames
    at_once = min(config.frames_at_once, frames)
    tiles = meta_tiles(
        at_once, min(workload.tiles or video.tiling.max_tiles, video.tiling.max_tiles), video.tiling.tile_size
    )

    def encode() -> list[torch.Tensor]:
        with torch.no_grad():
            encoder(tiles)
        return []

    pieces.run("image encoder, frames", encode, times=Fraction(batch * frames, at_once))
    length = tiles.lengths[0] * encoder.tokens_per_tile
    tokens_NC = torch.empty(batch * frames * length, encoder.feature_dim, dtype=KEPT_DTYPE, device=META)
    features, media = ImageFeatures(tokens_NC, (length,) * (batch * frames)), meta_media(None, batch, text)
    times = torch.empty(batch * frames, device=META)

    def merge() -> AdapterMemory:
        merged = video.adapter.merge(features, frames=[frames] * batch, times=times)
        return video.adapter.layers.memory(merged.tokens, merged.lengths, media)

    memory = run_memory(pieces, "temporal aggregator, keys and values", merge)
    cross = cross_layers_cost(video.adapter.layers, decoder, memory, text)
    losses = text if torch.is_grad_enabled() else 0
    run_decoder(pieces, decoder, embeddings(decoder, batch, text), CrossMemory({video.kind: memory}), losses=losses)
    return cross


def modules(video: VideoModality) -> dict[str, nn.Module]:
    """The parts as they are told apart in a table."""
    return {"video aggregator": video.adapter.aggregator, "video cross-attention": video.adapter.layers}
