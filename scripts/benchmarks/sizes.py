"""The shapes of the benchmark: one for two CPU cores, one for a GPU with a decoder of 8B, and one for tests.

Encoder and decoder of "cpu" cost about as much, relative to each other, as those of "8b" with tiles of 560 pixels and
short captions: three to four times as much for the one tile as for the text (spec A2.2, A4.1).
"""

from dataclasses import dataclass
from functools import partial

from multimodal.decoder_shape import DecoderShape
from speech.best_rq import BestRQConfig
from speech.conformer import ConformerConfig
from vision.image_modality import EncoderOptions
from vision.temporal_aggregator import TemporalAggregatorConfig


@dataclass(frozen=True, kw_only=True)
class Size:
    """Everything that is built.

    Attributes:
        encoder: of pictures. Patches of a tile and one token more may be no multiple of 8 together: `transformers`
            masks everything then.
        cross_layers: cross-attention layers of the image adapter.
        batch: samples of a training step.
        sweep_batch: samples of a step in the rows that only show how time and memory grow.
        prompt: tokens before a caption, the picture's own included.
        caption: least and most tokens of a caption.
        new_tokens: that a generation writes.
        batches, text, depths: the points of the plots: samples, tokens of a caption, layers of the decoder.
        sounds: utterances of a batch, of 2 to `longest_seconds` seconds.
        frames: of a clip, for the plots.
    """

    name: str
    decoder: DecoderShape
    encoder: EncoderOptions
    cross_layers: int
    batch: int = 8
    sweep_batch: int = 4
    prompt: int = 10
    caption: tuple[int, int]
    new_tokens: int
    batches: tuple[int, ...]
    text: tuple[int, ...]
    depths: tuple[int, ...]
    conformer: ConformerConfig
    best_rq: BestRQConfig
    sounds: int
    longest_seconds: float = 20.0
    aggregator: TemporalAggregatorConfig
    frames: tuple[int, ...]
    clip_seconds: float
    clip_side: int


_encoder = partial(EncoderOptions, tap_norm=False)  # the released model has none

CPU = Size(
    name="cpu",
    decoder=DecoderShape(width=256, layers=8, heads=8, kv_heads=2, ffn=704, vocabulary=4096),
    encoder=_encoder(tile_size=96, patch_size=8, width=192, layers=6, global_layers=2, heads=6),
    cross_layers=2,
    caption=(8, 40),
    new_tokens=24,
    batches=(2, 4, 8, 16),
    text=(32, 64, 128, 256),
    depths=(4, 8, 16),
    conformer=ConformerConfig(width=144, layers=6, heads=4, ffn=576, dropout=0.0),
    best_rq=BestRQConfig(),
    sounds=8,
    aggregator=TemporalAggregatorConfig(),
    frames=(4, 8, 16, 32),
    clip_seconds=8.0,
    clip_side=240,
)

GPU_8B = Size(
    name="8b",
    decoder=DecoderShape(),
    encoder=_encoder(tile_size=560, patch_size=14, width=1280, layers=32, global_layers=8, heads=16),
    cross_layers=8,
    caption=(8, 64),
    new_tokens=64,
    batches=(1, 2, 4, 8),
    text=(64, 128, 256, 512),
    depths=(16, 32),
    conformer=ConformerConfig(width=1536, layers=24, heads=24, ffn=4096, dropout=0.0),
    best_rq=BestRQConfig(codebooks=16, entries=8192),
    sounds=16,
    aggregator=TemporalAggregatorConfig(latents=64, width=1280, heads=16),
    frames=(16, 32, 64),
    clip_seconds=20.0,
    clip_side=720,
)

TINY = Size(
    name="tiny",
    decoder=DecoderShape(width=32, layers=4, heads=4, kv_heads=2, ffn=48, vocabulary=2048),
    encoder=_encoder(tile_size=16, patch_size=8, width=16, layers=2, global_layers=1, heads=2),
    cross_layers=2,
    batch=4,
    sweep_batch=2,
    prompt=4,
    caption=(2, 6),
    new_tokens=3,
    batches=(1, 2),
    text=(4, 8),
    depths=(2, 4),
    conformer=ConformerConfig(mels=8, width=16, layers=2, heads=2, ffn=32, dropout=0.0),
    best_rq=BestRQConfig(codebooks=2, entries=16, code_dim=4),
    sounds=3,
    longest_seconds=3.0,
    aggregator=TemporalAggregatorConfig(latents=3, width=16, heads=2, group=4),
    frames=(2, 4),
    clip_seconds=1.0,
    clip_side=32,
)

SIZES = {size.name: size for size in (CPU, GPU_8B, TINY)}
