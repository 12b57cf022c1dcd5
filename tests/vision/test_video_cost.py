"""What the video parts are said to cost."""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from multimodal.decoder_shape import DecoderShape
from multimodal.meta_decoder import meta_decoder
from multimodal.meta_run import META
from multimodal.stage_cost import Workload
from vision.encoder import ImageEncoder, ImageFeatures
from vision.image_adapter import ImageAdapterConfig
from vision.image_cost import meta_tiles
from vision.image_modality import EncoderOptions, ImageConfig, ImageModality
from vision.temporal_aggregator import TemporalAggregator, TemporalAggregatorConfig
from vision.tiling import TileBatch
from vision.video_adapter import VideoAdapterConfig
from vision.video_cost import STAGES, video_run
from vision.video_modality import VideoConfig, VideoModality

SHAPE = DecoderShape(layers=4, width=64, heads=4, kv_heads=2, ffn=128, vocabulary=100)
ENCODER = EncoderOptions(tile_size=32, patch_size=8, width=48, layers=2, global_layers=1, heads=4)
AGGREGATOR = TemporalAggregatorConfig(group=4, latents=5, width=32, layers=2, heads=2)
VIDEO = VideoConfig(adapter=VideoAdapterConfig(every=2, aggregator=AGGREGATOR), frames=8, frames_at_once=4)


def cost(load: Workload, train: tuple[str, ...] = STAGES["video: adapter"], config: VideoConfig = VIDEO):
    decoder = meta_decoder(SHAPE.config(), dtype=torch.float32)
    with META:
        image = ImageModality.create(ImageConfig(encoder=ENCODER, adapter=ImageAdapterConfig(cross_layers=2)), decoder)
        video = VideoModality.create(config, decoder, image)
    decoder.attach("image", image.adapter)
    decoder.attach("video", video.adapter)
    found = video_run(video, decoder, load, train=train, dtype=None)
    return found, {piece.name: piece for piece in found.pieces}


def test_frames_go_through_the_encoder_forwards_alone_each_once() -> None:
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        ImageEncoder(ENCODER)(TileBatch(torch.randn(2, 3, 32, 32), [(1, 2)]))
    _, pieces = cost(Workload(batch=3, tiles=2, frames=6, text_tokens=8))
    frames = pieces["image encoder, frames"]
    assert frames.backward == 0 and frames.forward == 18 * counter.get_total_flops()


@pytest.mark.parametrize("start", ["latents", "frames"])
def test_the_aggregator_costs_what_flop_counter_counts(start: Literal["latents", "frames"]) -> None:
    sizes = replace(AGGREGATOR, start=start)
    aggregator = TemporalAggregator(sizes, feature_dim=96, out_dim=64)
    tokens = 8 * 17
    features = ImageFeatures(torch.randn(tokens, 96), (17,) * 8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        aggregator(features, frames=[8], times=torch.rand(8)).tokens.sum().backward()
    config = replace(VIDEO, adapter=replace(VIDEO.adapter, aggregator=sizes))
    _, pieces = cost(Workload(tiles=1, text_tokens=8), config=config)
    piece = pieces["temporal aggregator, keys and values"]
    keys_and_values = 3 * 2 * (2 * 5) * 64 * 64  # two projections to half the width, forwards and twice backwards
    assert piece.forward + piece.backward == pytest.approx(counter.get_total_flops() + keys_and_values, rel=0.01)


def test_longer_clips_keep_more() -> None:
    short, long = (cost(Workload(tiles=1, frames=frames, text_tokens=8))[0] for frames in (8, 32))
    assert long.kept > 2 * short.kept


def test_tiles_lie_near_to_a_square() -> None:
    assert meta_tiles(2, 4, 32).grids == [(2, 2)] * 2 and meta_tiles(1, 3, 32).lengths == [3]
