"""What the image parts are said to cost, against a real training step of the same small model on the CPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from multimodal.batch import MediaBatch
from multimodal.decoder import FrozenDecoder
from multimodal.decoder_shape import DecoderShape
from multimodal.loss import frozen_head_loss
from multimodal.memory import CrossMemory
from multimodal.meta_decoder import meta_decoder
from multimodal.meta_run import META, RunCost
from multimodal.stage_cost import Workload
from tests.saved_bytes import saved_bytes
from vision.image_adapter import ImageAdapterConfig
from vision.image_cost import STAGES, image_run
from vision.image_modality import EncoderOptions, ImageConfig, ImageModality
from vision.tiling import TileBatch

SHAPE = DecoderShape(layers=4, width=64, heads=4, kv_heads=4, ffn=128, vocabulary=100)
ENCODER = EncoderOptions(tile_size=32, patch_size=8, width=48, layers=3, global_layers=1, heads=4)
CONFIG = ImageConfig(encoder=ENCODER, adapter=ImageAdapterConfig(cross_layers=2))
LOAD = Workload(batch=2, tiles=4, text_tokens=24)


def parts(decoder: FrozenDecoder) -> ImageModality:
    image = ImageModality.create(CONFIG, decoder)
    decoder.attach("image", image.adapter)
    return image


def estimate(train: tuple[str, ...], *, checkpointing: bool = False, load: Workload = LOAD) -> RunCost:
    decoder = meta_decoder(SHAPE.config(), dtype=torch.float32)
    with META:
        image = parts(decoder)
    if checkpointing:
        decoder.enable_gradient_checkpointing()
        image.encoder.enable_gradient_checkpointing()  # type: ignore[operator]
    return image_run(image, decoder, load, train=train, dtype=None)


class Real:
    """The same model with random weights, and a batch for it."""

    def __init__(self, train: tuple[str, ...], *, checkpointing: bool = False) -> None:
        self.decoder = FrozenDecoder(AutoModelForCausalLM.from_config(SHAPE.config()))
        self.image = parts(self.decoder)
        for name, named in self.image.parts().items():
            for _, parameter in named:
                parameter.requires_grad_(name in train)
        if checkpointing:
            self.decoder.enable_gradient_checkpointing()
            self.image.encoder.enable_gradient_checkpointing()  # type: ignore[operator]

    def loss(self) -> torch.Tensor:
        tiles = TileBatch(torch.randn(8, 3, 32, 32), [(2, 2)] * 2)
        groups_BT = torch.ones(2, LOAD.text_tokens, dtype=torch.long)
        memory: Any = self.image.memory(MediaBatch(tiles, (((0, 1),), ((1, 1),)), groups_BT))
        ids_BT = torch.randint(0, 100, (2, LOAD.text_tokens))
        hidden_BTD = self.decoder.hidden(ids_BT, memory=CrossMemory(memory))
        weight_VD = (
            self.decoder.lm.lm_head.weight
        )  # not the module: the counter's hooks do not bear the loss's own graph
        return frozen_head_loss(hidden_BTD, ids_BT, lambda x_nD: F.linear(x_nD, weight_VD))[0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", [name for name, train in STAGES.items() if train])
def test_operations_are_those_that_flop_counter_counts(stage: str, checkpointing: bool) -> None:
    train = STAGES[stage]
    real = Real(train, checkpointing=checkpointing)
    # Unfused attention is counted: the fused one of the CPU is not known to the counter.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        real.loss().backward()
    cost = estimate(train, checkpointing=checkpointing)
    found = cost.flops
    # Where layers are recomputed, how much of the last attention is depends on the kernel.
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02 if checkpointing else 1e-9)


@pytest.mark.parametrize("stage", [name for name, train in STAGES.items() if train])
def test_kept_bytes_are_about_those_that_autograd_saves(stage: str) -> None:
    """Within a fifth: a CPU has no fused RMSNorm and saves more for those of queries and keys."""
    train = STAGES[stage]
    real = Real(train)
    saved = saved_bytes(real.loss, real.decoder, real.image)
    assert estimate(train).kept == pytest.approx(saved, rel=0.2)


def test_a_frozen_encoder_keeps_little_and_goes_forwards_only() -> None:
    frozen, learning = (estimate(STAGES[f"image: adapter{rest}"]) for rest in (", encoder frozen", " and encoder"))
    assert frozen.pieces[0].name == learning.pieces[0].name == "image encoder"
    assert frozen.pieces[0].backward == 0 and learning.pieces[0].backward > 1.8 * learning.pieces[0].forward
    assert frozen.kept < learning.kept


def test_the_decoder_goes_backwards_for_its_inputs_alone() -> None:
    by_name = {piece.name: piece for piece in estimate(STAGES["image: adapter and encoder"]).pieces}
    decoder, cross = by_name["decoder"], by_name["cross-attention layers"]
    # Cross-attention stands before layers 1 and 3 of four: of four layers three go backwards, once and not twice.
    assert decoder.backward == pytest.approx(0.75 * decoder.forward, rel=0.1)
    assert 1.8 * cross.forward < cross.backward <= 2 * cross.forward


def test_a_batch_costs_its_samples() -> None:
    one, four = (estimate(STAGES["image: adapter, encoder frozen"], load=replace(LOAD, batch=n)) for n in (1, 4))
    for piece, pieces in zip(one.pieces, four.pieces, strict=True):
        assert (pieces.forward, pieces.backward) == (4 * piece.forward, 4 * piece.backward)
    assert one.kept < four.kept <= 4 * one.kept and one.peak < four.peak


def test_use_needs_no_gradient() -> None:
    cost = estimate(())
    assert all(piece.backward == 0 for piece in cost.pieces) and cost.peak < estimate(("adapter", "gates")).peak


def test_the_numerics_of_the_released_model_run_too() -> None:
    decoder = meta_decoder(SHAPE.config())
    with META:
        encoder = replace(ENCODER, numerics="reference", tap_norm=False)
        image = ImageModality.create(ImageConfig(encoder=encoder, adapter=CONFIG.adapter), decoder)
    decoder.attach("image", image.adapter)
    cost = image_run(image, decoder, Workload(tiles=1), train=STAGES["image: adapter and encoder"])
    full = image_run(image, decoder, Workload(tiles=4), train=STAGES["image: adapter and encoder"])
    # One tile is padded to four there.
    assert cost.pieces[0].forward == full.pieces[0].forward
