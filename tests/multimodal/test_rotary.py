"""Rotary positions: Llama's own rotation, distances alone count, padding is not looked at."""

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from multimodal.rotary import RotarySelfAttention, rotary_angles, rotate

CPU = torch.device("cpu")


def test_rotation_is_llamas() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 50, 8, generator=generator) for _ in range(2))
    cos, sin = LlamaRotaryEmbedding(LlamaConfig(hidden_size=24, num_attention_heads=3))(q, torch.arange(50)[None])
    angles = rotary_angles(50, 8, device=CPU)
    for ours, theirs in zip((rotate(q, angles), rotate(k, angles)), apply_rotary_pos_emb(q, k, cos, sin), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = (torch.randn(1, 1, 1, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    angles = rotary_angles(1500, 16, device=CPU)
    turned_q, turned_k = (rotate(x.expand(1, 1, 1500, 16), angles)[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in (0, 3, 400):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=2e-3, rtol=0)
    assert (scores[0, 0] - scores[0, 1:40]).abs().max() > 0.1


def test_half_precision_is_rotated_in_fp32() -> None:
    x = torch.randn(1, 1, 1500, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    angles = rotary_angles(1500, 16, device=CPU)
    turned = rotate(x, angles)
    assert turned.dtype == torch.bfloat16 and torch.equal(turned, rotate(x.float(), angles).bfloat16())


def test_attention_shifts_with_the_signal_and_does_not_see_padding() -> None:
    torch.manual_seed(0)
    attention = RotarySelfAttention(width=16, heads=2)
    x = torch.randn(1, 6, 16)
    alone = attention(x)
    padding = torch.full((1, 3, 16), 7.0)
    valid = torch.tensor([[False] * 3 + [True] * 6 + [False] * 3])
    shifted = attention(torch.cat([padding, x, padding], dim=1), valid)
    torch.testing.assert_close(shifted[:, 3:9], alone, atol=1e-6, rtol=1e-5)
    assert (attention(x.flip(1)).flip(1) - alone).abs().max() > 1e-3  # order counts


def test_sequences_end_to_end_are_as_each_alone() -> None:
    torch.manual_seed(0)
    layer, lengths = RotarySelfAttention(width=16, heads=2), (5, 1, 3)
    x = torch.randn(2, sum(lengths), 16)
    together = layer(x, lengths=lengths)
    alone = torch.cat([layer(part) for part in x.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
