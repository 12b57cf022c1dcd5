"""Gated cross-attention: how a frozen decoder's hidden states read media (Llama 3 paper, section 7.2 / spec A4.2).

Legend: B batch, T text positions, S memory tokens, D decoder width, H query heads, G key/value heads, K head dimension.
"""

import torch
from torch import Tensor, nn

from multimodal.attention import attend
from multimodal.layers import SwiGLU, TanhGate
from multimodal.memory import Readers


class GatedCrossAttention(nn.Module):
    """Cross-attention and SwiGLU feed-forward, each behind a tanh gate that starts at 0.

    `project` turns memory into keys and values; it runs once per prompt, so they are cached by construction. Queries
    and keys are RMS-normalised per head, no positions are encoded, and memory goes in without a norm.

    Args:
        dim: width of the decoder and of the memory tokens.
        heads: query heads.
        kv_heads: key/value heads, a divisor of `heads`.
        head_dim: width of a head.
        ffn_dim: hidden width of the feed-forward.
        eps: epsilon of every RMSNorm.
        n_layers: number of such blocks in the model; output projections start smaller by 1/sqrt(2 * n_layers).
    """

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        ffn_dim: int,
        eps: float = 1e-5,
        n_layers: int | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.attn_norm = nn.RMSNorm(dim, eps=eps)
        self.q_proj = nn.Linear(dim, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=eps)
        self.k_norm = nn.RMSNorm(head_dim, eps=eps)
        self.attn_gate = TanhGate()
        self.ffn_norm = nn.RMSNorm(dim, eps=eps)
        self.ffn = SwiGLU(dim, ffn_dim)
        self.ffn_gate = TanhGate()
        # Scaled by width: 0.02, right for thousands, leaves narrow adapters with signals too weak to learn from.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                out = module is self.o_proj or module is self.ffn.down
                scale = (2 * n_layers) ** -0.5 if out and n_layers else 1.0
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)

    def project(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, S, K] of the memory tokens."""
        memory_BSD = memory_BSD.to(self.k_proj.weight.dtype)
        v_BGSK = self._split(self.v_proj(memory_BSD))
        k_BGSK = self.k_norm(self._split(self.k_proj(memory_BSD)).to(self.k_norm.weight.dtype))
        return k_BGSK.to(v_BGSK.dtype), v_BGSK

    def query(self, hidden_BTD: Tensor) -> Tensor:
        """Normalised queries [B, H, T, K] of the hidden states."""
        x_BTD = self.attn_norm(hidden_BTD.to(self.q_proj.weight.dtype))
        return self.q_norm(self._split(self.q_proj(x_BTD)).to(self.q_norm.weight.dtype))

    def forward(
        self,
        hidden_BTD: Tensor,
        k_BGSK: Tensor,
        v_BGSK: Tensor,
        mask_BTS: Tensor,
        row_valid_BT: Tensor,
        readers: Readers | None = None,
    ) -> Tensor:
        """Hidden states after reading the memory.

        Args:
            hidden_BTD: hidden states in any floating dtype; the result has the same.
            k_BGSK: keys from `project`.
            v_BGSK: values from `project`.
            mask_BTS: True where position t may see memory token s.
            row_valid_BT: True where position t sees anything at all. Other rows come back unchanged to the bit: neither
                attention nor feed-forward adds to them.
            readers: the part of the batch that holds all valid rows; what is outside costs nothing.
        """
        if readers is None:
            return self._read(hidden_BTD, k_BGSK, v_BGSK, mask_BTS, row_valid_BT)
        rows_R, first = readers.rows_R, readers.first
        if rows_R is not None and not len(rows_R):
            return hidden_BTD
        tensors = (hidden_BTD, k_BGSK, v_BGSK, mask_BTS, row_valid_BT)
        x, k, v, mask, row_valid = tensors if rows_R is None else (t.index_select(0, rows_R) for t in tensors)
        masks = (None, None) if readers.unmasked else (mask[:, first:], row_valid[:, first:])
        read = self._read(x[:, first:], k, v, *masks)
        whole = torch.cat([x[:, :first], read], dim=1) if first else read
        return whole if rows_R is None else hidden_BTD.index_copy(0, rows_R, whole)

    def _read(
        self,
        hidden_BTD: Tensor,
        k_BGSK: Tensor,
        v_BGSK: Tensor,
        mask_BTS: Tensor | None,
        row_valid_BT: Tensor | None,
    ) -> Tensor:
        """All of it; without masks every position sees every memory token."""
        weight_dtype = self.o_proj.weight.dtype
        q_BHTK = self.query(hidden_BTD).to(k_BGSK.dtype)
        mask = None if mask_BTS is None else mask_BTS[:, None]
        out_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, mask=mask, row_valid=row_valid_BT)
        attended_BTD = self.o_proj(out_BHTK.transpose(1, 2).flatten(2).to(weight_dtype))
        x_BTD = hidden_BTD + self.attn_gate(attended_BTD).to(hidden_BTD.dtype)
        fed_BTD = self.ffn(self.ffn_norm(x_BTD.to(weight_dtype)))
        x_BTD = x_BTD + self.ffn_gate(fed_BTD).to(hidden_BTD.dtype)
        return x_BTD if row_valid_BT is None else torch.where(row_valid_BT[..., None], x_BTD, hidden_BTD)

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, heads * K] -> [B, heads, L, K]"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
