"""Recomputed attention weights: a distribution over what may be seen, and the one the block itself used."""

import pytest
import torch
from torch import Tensor

from multimodal.attention_weights import cross_attention_weights, head_weights, record_cross_attention
from multimodal.cross_attention import GatedCrossAttention

B, T, S, D, H = 2, 5, 7, 24, 4


@pytest.fixture
def layer() -> GatedCrossAttention:
    torch.manual_seed(0)
    layer = GatedCrossAttention(dim=D, heads=H, kv_heads=2, head_dim=6, ffn_dim=32)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # away from 0 gates, unit norms and near-uniform weights
    return layer


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask_BTS = torch.rand(B, T, S) < 0.6
    mask_BTS[0, 2] = False  # a position that sees nothing
    mask_BTS[1, :, 4:] = False  # padding
    mask_BTS[1, :, 0] = True
    return torch.randn(B, T, D), torch.randn(B, S, D), mask_BTS


def test_weights_are_distributions_over_what_may_be_seen(layer, inputs) -> None:
    hidden_BTD, memory_BSD, mask_BTS = inputs
    weights_BTS = cross_attention_weights(layer, hidden_BTD, layer.project(memory_BSD)[0], mask_BTS)
    assert weights_BTS.shape == (B, T, S) and not weights_BTS.requires_grad
    assert (weights_BTS[~mask_BTS] == 0).all() and (weights_BTS[mask_BTS] > 0).all()
    torch.testing.assert_close(weights_BTS.sum(-1), mask_BTS.any(-1).float())


def test_weights_times_values_are_what_the_block_adds(layer, inputs) -> None:
    hidden_BTD, memory_BSD, mask_BTS = inputs
    k_BGSK, v_BGSK = layer.project(memory_BSD)
    with torch.no_grad():
        layer.ffn_gate.weight.zero_()
        added_BTD = layer(hidden_BTD, k_BGSK, v_BGSK, mask_BTS, mask_BTS.any(-1)) - hidden_BTD
    out_BHTK = head_weights(layer, hidden_BTD, k_BGSK, mask_BTS) @ v_BGSK.repeat_interleave(2, dim=1)
    expected_BTD = torch.tanh(layer.attn_gate.weight) * layer.o_proj(out_BHTK.transpose(1, 2).flatten(2))
    torch.testing.assert_close(added_BTD, expected_BTD, atol=1e-5, rtol=1e-4)
    assert added_BTD.abs().max() > 0.1


def test_recording_sees_each_call_and_ends_with_the_block(layer, inputs) -> None:
    hidden_BTD, memory_BSD, mask_BTS = inputs
    other = GatedCrossAttention(dim=D, heads=H, kv_heads=1, head_dim=6, ffn_dim=32)
    calls = [(block, *block.project(memory_BSD)) for block in (layer, other, layer)]
    with record_cross_attention([layer, other]) as looks:
        for block, k, v in calls:
            block(hidden_BTD, k, v, mask_BTS, mask_BTS.any(-1))
    layer(hidden_BTD, calls[0][1], calls[0][2], mask_BTS, mask_BTS.any(-1))
    assert len(looks) == 3
    for look, (block, k, _) in zip(looks, calls, strict=True):
        torch.testing.assert_close(look, cross_attention_weights(block, hidden_BTD, k, mask_BTS))
