"""The conformer block (Gulati et al. 2020, with rotary attention; Llama 3 paper, section 8.2 / spec B2).

Legend: B utterances, T frames, D width, N valid frames of the batch.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.rotary import RotarySelfAttention

ConvNorm = Literal["layer", "batch"]


class FeedForward(nn.Sequential):
    """Norm, linear, Swish, linear, ungated: [..., width] -> [..., width]."""

    def __init__(self, *, width: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, width),
            nn.Dropout(dropout),
        )


class ConvolutionModule(nn.Module):
    """Norm, pointwise with GLU, depthwise over time, norm, Swish, pointwise.

    Args:
        width: D.
        kernel: frames that the depthwise convolution spans, odd.
        norm: "layer": each frame for itself; "batch": over all frames of the batch that are not padding, for imported
            weights.
    """

    def __init__(self, *, width: int, kernel: int, norm: ConvNorm, dropout: float) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(width)
        self.pointwise_in = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width) if norm == "layer" else nn.BatchNorm1d(width)
        self.pointwise_out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None, lengths: tuple[int, ...] | None = None) -> Tensor:
        x_BTD = F.glu(self.pointwise_in(self.norm_in(x_BTD)), dim=-1)
        if valid_BT is not None:
            # Here and not before: the biases above make padding anything but zero.
            x_BTD = x_BTD.masked_fill(~valid_BT[..., None], 0)
        x_BTD = self._convolve(x_BTD) if lengths is None else self._convolve_each(x_BTD, lengths)
        x_BTD = _batch_norm(self.norm, x_BTD, valid_BT) if isinstance(self.norm, nn.BatchNorm1d) else self.norm(x_BTD)
        return self.dropout(self.pointwise_out(F.silu(x_BTD)))

    def _convolve(self, x_BTD: Tensor) -> Tensor:
        return self.depthwise(x_BTD.transpose(1, 2)).transpose(1, 2)

    def _convolve_each(self, x_BTD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Utterances end to end, with as many zeros between them as a convolution can reach."""
        gap = self.depthwise.kernel_size[0] // 2
        spread = self._convolve(torch.cat([F.pad(one, (0, 0, 0, gap)) for one in x_BTD.split(lengths, dim=1)], dim=1))
        parts = spread.split([length + gap for length in lengths], dim=1)
        return torch.cat([one[:, :length] for one, length in zip(parts, lengths, strict=True)], dim=1)


def _batch_norm(norm: nn.BatchNorm1d, x_BTD: Tensor, valid_BT: Tensor | None) -> Tensor:
    """Batch norm whose statistics padding does not enter."""
    if valid_BT is None or not norm.training:
        return norm(x_BTD.flatten(0, 1)).view(x_BTD.shape)
    x_ND = norm(x_BTD[valid_BT])
    return torch.zeros_like(x_BTD, dtype=x_ND.dtype).index_put((valid_BT,), x_ND)


class ConformerBlock(nn.Module):
    """Half a feed-forward, rotary self-attention, convolution, half a feed-forward, norm (spec B2).

    Args:
        width: D.
        heads: attention heads.
        ffn: hidden width of both feed-forwards.
        kernel, conv_norm: see `ConvolutionModule`.
        dropout: rate on each branch.
    """

    def __init__(self, *, width: int, heads: int, ffn: int, kernel: int, conv_norm: ConvNorm, dropout: float) -> None:
        super().__init__()
        self.feed_forward_in = FeedForward(width=width, hidden=ffn, dropout=dropout)
        self.norm_attention = nn.LayerNorm(width)
        self.attention = RotarySelfAttention(width=width, heads=heads)
        self.dropout = nn.Dropout(dropout)
        self.convolution = ConvolutionModule(width=width, kernel=kernel, norm=conv_norm, dropout=dropout)
        self.feed_forward_out = FeedForward(width=width, hidden=ffn, dropout=dropout)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None, lengths: tuple[int, ...] | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D].

        Args:
            valid_BT: False on padding (None: there is none), which comes back finite.
            lengths: rows hold several utterances of these lengths end to end, each for itself, and no padding.
        """
        x_BTD = x_BTD + 0.5 * self.feed_forward_in(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), valid_BT, lengths))
        x_BTD = x_BTD + self.convolution(x_BTD, valid_BT, lengths)
        x_BTD = x_BTD + 0.5 * self.feed_forward_out(x_BTD)
        return self.norm_out(x_BTD)
