"""What the speech parts are said to cost, against real steps of the same small modules on the CPU."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from multimodal.decoder_shape import DecoderShape
from multimodal.meta_decoder import meta_decoder
from multimodal.meta_run import META
from multimodal.stage_cost import Workload
from speech.best_rq import BestRQConfig, BestRQTask, mask_spans
from speech.conformer import Conformer, ConformerConfig
from speech.speech_adapter import SpeechAdapter, SpeechAdapterConfig
from speech.speech_cost import STAGES, MetaSpeech, best_rq_run, masked_share, mel_frames, speech_run
from speech.speech_modality import SpeechConfig
from tests.saved_bytes import saved_bytes

SHAPE = DecoderShape(layers=2, width=64, heads=4, kv_heads=2, ffn=128, vocabulary=100)
ENCODER = ConformerConfig(width=48, layers=2, heads=2, ffn=96, dropout=0.0)
ADAPTER = SpeechAdapterConfig(width=64, heads=2, ffn=96)
LOAD = Workload(batch=2, seconds=1.6, text_tokens=8)
FRAMES = 160


def estimate(train: tuple[str, ...]):
    decoder = meta_decoder(SHAPE.config(), dtype=torch.float32)
    speech = MetaSpeech(SpeechConfig(encoder=ENCODER, adapter=ADAPTER), decoder.dim)
    found = speech_run(speech, decoder, LOAD, train=train, dtype=None)
    return found, {piece.name: piece for piece in found.pieces}


def test_encoder_and_adapter_cost_what_flop_counter_counts() -> None:
    encoder = Conformer(ENCODER)
    adapter = SpeechAdapter(ADAPTER, feature_dim=48, decoder_dim=64, embedding_rms=1.0)
    lengths_B = torch.full((2,), FRAMES)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        adapter(encoder(torch.randn(2, FRAMES, 80), lengths_B), encoder.output_length(lengths_B)).sum().backward()
    _, pieces = estimate(STAGES["speech: adapter and encoder"])
    found = sum(pieces[name].forward + pieces[name].backward for name in ("speech encoder", "speech adapter"))
    assert mel_frames(LOAD.seconds) == FRAMES and found == counter.get_total_flops()


def test_kept_bytes_of_the_encoder_are_within_a_tenth_of_those_that_autograd_saves() -> None:
    encoder, lengths_B = Conformer(ENCODER), torch.full((2,), FRAMES)
    saved = saved_bytes(lambda: encoder(torch.randn(2, FRAMES, 80), lengths_B), encoder)
    learning, frozen = (estimate(STAGES[f"speech: adapter{rest}"])[0] for rest in (" and encoder", ", encoder frozen"))
    assert learning.kept - frozen.kept == pytest.approx(saved, rel=0.1)


def test_the_whole_decoder_goes_backwards_for_the_embeddings() -> None:
    _, pieces = estimate(STAGES["speech: adapter, encoder frozen"])
    assert pieces["speech encoder"].backward == 0
    assert pieces["decoder"].backward == pytest.approx(pieces["decoder"].forward, rel=0.1)


def test_best_rq_has_heads_on_the_masked_frames_alone() -> None:
    config = BestRQConfig(codebooks=3, entries=64)
    with META:
        task = BestRQTask(Conformer(ENCODER), config)
    cost = best_rq_run(task, LOAD, dtype=None)
    masked = round(masked_share(config) * 2 * FRAMES / 4)
    # Logits are made anew in the backward pass: forwards twice, and twice as much for both gradients.
    heads = cost.pieces[1]
    assert heads.forward == 3 * 2 * masked * 48 * 64 and heads.forward * 2 <= heads.backward <= heads.forward * 3


def test_the_share_of_masked_frames_is_that_of_the_masks() -> None:
    torch.manual_seed(0)
    drawn = mask_spans(torch.full((20,), 8000)).float().mean().item()
    assert masked_share(BestRQConfig()) == pytest.approx(drawn, abs=0.02)
