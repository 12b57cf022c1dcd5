"""The ideal count of floating-point operations of a captioning step: what the mathematics asks for and nothing more.

Matrix products alone, 2 operations a multiply-add (sizes: spec A2.2, A2.3, A4.1). No padded tile, no padded token, no
recomputation, no logits where there is no loss. A trained part counts three times (forward, gradient of its input, of
its weights), a frozen one above the first adapter twice, below it once; what text alone meets, once.
"""

from dataclasses import dataclass

from multimodal.batch import Batch
from multimodal.decoder_shape import DecoderShape
from multimodal.loss import IGNORE
from scripts.benchmarks.sizes import Size
from vision.encoder import ImageEncoderConfig

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bf16 operations a second, by a part of the card's name (the makers' data sheets)."""


def peak_of(card: str) -> float | None:
    """Of a card by name; None where it is not known."""
    return next((peak for name, peak in PEAK.items() if name in card), None)


@dataclass(frozen=True)
class Counted:
    """What a batch holds: tokens of each picture, text tokens that follow pictures row by row, others, targets."""

    pictures: tuple[int, ...]
    seeing: tuple[int, ...]
    blind: tuple[int, ...]
    targets: int
    blind_targets: int


def count_batch(batch: Batch, size: Size) -> Counted:
    """Of a batch whose rows have one picture or none, the picture first."""
    lengths, targets = batch.attention_mask.sum(1).tolist(), (batch.targets != IGNORE).sum(1).tolist()
    with_media = batch.rows_with_media()
    tiles = batch.media["image"].items.lengths if batch.media else []
    per_tile = size.encoder.patch_side**2 + 1
    return Counted(
        pictures=tuple(count * per_tile for count in tiles),
        seeing=tuple(length for row, length in enumerate(lengths) if row in with_media),
        blind=tuple(length for row, length in enumerate(lengths) if row not in with_media),
        targets=sum(count for row, count in enumerate(targets) if row in with_media),
        blind_targets=sum(count for row, count in enumerate(targets) if row not in with_media),
    )


def encoder_forward(shape: ImageEncoderConfig, tokens: int) -> float:
    """One picture through the image encoder."""
    blocks, in_tile = shape.layers + shape.global_layers, shape.patch_side**2
    linear = 2 * 12 * shape.width**2 * tokens
    attention = 4 * tokens**2 * shape.width
    patches = tokens // (in_tile + 1) * in_tile
    return blocks * (linear + attention) + 2 * 3 * shape.patch_size**2 * shape.width * patches


def decoder_layer_forward(shape: DecoderShape, tokens: int) -> float:
    """One row through one layer of the decoder, causal attention counted by half."""
    kv = shape.width // shape.heads * shape.kv_heads
    linear = 2 * (2 * shape.width**2 + 2 * shape.width * kv + 3 * shape.width * shape.ffn) * tokens
    return linear + 2 * tokens**2 * shape.width


def adapter_forward(size: Size, features: int, picture: int, tokens: int) -> float:
    """One row with its picture through projector and cross-attention layers."""
    shape = size.decoder
    kv = shape.width // shape.heads * shape.kv_heads
    layer = 2 * (2 * shape.width**2 + 3 * shape.width * shape.ffn) * tokens
    layer += 2 * 2 * shape.width * kv * picture + 4 * tokens * picture * shape.width
    return 2 * features * shape.width * picture + size.cross_layers * layer


def training_step(
    counted: Counted, size: Size, *, features: int, layers: int, first_adapted: int, encoder: str = "trained"
) -> float:
    """The whole step.

    Args:
        features: C, width of the encoder's features.
        layers: of the decoder.
        first_adapted: lowest layer of the decoder with an adapter.
        encoder: "trained", "frozen", or "cached" (its features are at hand).
    """
    times = {"trained": 3, "frozen": 1, "cached": 0}[encoder]
    total = times * sum(encoder_forward(size.encoder, tokens) for tokens in counted.pictures)
    rows = zip(counted.pictures, counted.seeing, strict=True)
    total += 3 * sum(adapter_forward(size, features, picture, tokens) for picture, tokens in rows)
    passes = first_adapted + 2 * (layers - first_adapted)
    total += passes * sum(decoder_layer_forward(size.decoder, tokens) for tokens in counted.seeing)
    total += layers * sum(decoder_layer_forward(size.decoder, tokens) for tokens in counted.blind)
    head = 2 * size.decoder.width * size.decoder.vocabulary
    return total + head * (2 * counted.targets + counted.blind_targets)
