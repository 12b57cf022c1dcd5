"""The one attention of Graft: encoders, adapters and resamplers all call `attend`.

Legend: B batch, H query heads, G key/value heads (H is a multiple of G), T queries, S keys, K head dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def attend(
    q_BHTK: Tensor,
    k_BGSK: Tensor,
    v_BGSK: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    row_valid: Tensor | None = None,
) -> Tensor:
    """Scaled dot-product attention with grouped key/value heads (Llama 3 paper, section 3.2 / spec C1).

    Args:
        q_BHTK: queries; head h reads key/value head floor(h * G / H).
        k_BGSK: keys.
        v_BGSK: values.
        mask: bool, broadcastable to [B, 1 or H, T, S]; True = may attend.
        causal: query t sees no key after itself; with S > T the queries are the last T of the S positions.
        row_valid: bool [B, T]. A query row that may attend to nothing must be False here: its output is exactly 0 and
            it passes no gradient, whatever a kernel does with fully masked rows.

    Returns:
        [B, H, T, K] in the dtype of the values.

    Raises:
        ValueError: H is not a multiple of G.
    """
    heads, kv_heads, queries, keys = q_BHTK.shape[1], k_BGSK.shape[1], q_BHTK.shape[2], k_BGSK.shape[2]
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads; expected a multiple")
    if keys == 0:
        return torch.zeros_like(q_BHTK)
    if causal and (mask is not None or queries != keys):
        past_TS = _past(queries, keys, q_BHTK.device)
        mask, causal = past_TS if mask is None else mask & past_TS, False
    if row_valid is None:
        return _attend_in_best_dtype(q_BHTK, k_BGSK, v_BGSK, mask=mask, causal=causal)
    row_valid_B1T1 = row_valid[:, None, :, None]
    if mask is not None:
        mask = mask | ~row_valid_B1T1  # a row that sees nothing is computed over everything, then thrown away
    return torch.where(row_valid_B1T1, _attend_in_best_dtype(q_BHTK, k_BGSK, v_BGSK, mask=mask, causal=causal), 0.0)


def _past(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [T, S]: the last query sees every key, each before it one key less."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def trains_in_bf16_on_cpu(device: torch.device) -> bool:
    """Whether gradients will flow through bf16 autocast on a CPU, whose fused attention is slow there in backward.

    Measured on two cores with AVX512-BF16 at 64 rows, 8 heads, 52 tokens: forward and backward 61 ms in bf16, 24 ms
    unfused, 21 ms fused in fp32 (torch 2.11).
    """
    return device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()


MOST_SCORES = 2**22
"""Numbers in the scores [B, H, T, S] up to which they are written out there: 25 MB with their softmax."""


def _attend_in_best_dtype(
    q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, *, mask: Tensor | None, causal: bool
) -> Tensor:
    grouped = q_BHTK.shape[1] != k_BGSK.shape[1]
    if not trains_in_bf16_on_cpu(q_BHTK.device):
        return F.scaled_dot_product_attention(
            q_BHTK, k_BGSK, v_BGSK, attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
    if q_BHTK.shape[:3].numel() * k_BGSK.shape[2] <= MOST_SCORES:
        return _attend_written_out(q_BHTK, k_BGSK, v_BGSK, mask=mask, causal=causal)
    # The decoder around an adapter may be running unfused for the same reason.
    with torch.autocast("cpu", enabled=False), sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        out_BHTK = F.scaled_dot_product_attention(
            q_BHTK.float(), k_BGSK.float(), v_BGSK.float(), attn_mask=mask, is_causal=causal, enable_gqa=grouped
        )
    return out_BHTK.to(v_BGSK.dtype)


def _attend_written_out(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, *, mask: Tensor | None, causal: bool) -> Tensor:
    """Two products in bf16 around a softmax in fp32; R = H * T / G rows of queries for each key/value head.

    At 64 rows, 8 heads, 52 queries and 110 keys forward and backward take 10 ms there, the fused kernel 22 ms in fp32
    (torch 2.11, two cores with AVX512-BF16).
    """
    queries, kv_heads = q_BHTK.shape[2], k_BGSK.shape[1]
    q_BGRK = (q_BHTK * q_BHTK.shape[-1] ** -0.5).unflatten(1, (kv_heads, -1)).flatten(2, 3)
    scores_BHTS = (q_BGRK @ k_BGSK.mT).unflatten(2, (-1, queries)).flatten(1, 2)
    if causal:
        mask = _past(queries, k_BGSK.shape[2], scores_BHTS.device)
    if mask is not None:
        scores_BHTS = scores_BHTS.masked_fill(~mask, torch.finfo(scores_BHTS.dtype).min)
    weights_BGRS = scores_BHTS.float().softmax(-1).to(v_BGSK.dtype).unflatten(1, (kv_heads, -1)).flatten(2, 3)
    return (weights_BGRS @ v_BGSK).unflatten(2, (-1, queries)).flatten(1, 2).to(v_BGSK.dtype)
