"""Rotary positions and the self-attention that uses them (Llama 3 paper, sections 3.2 and 8.2).

As in Llama: projected queries and keys are rotated, the first half of a head with the second. Scores then depend on the
distance between two positions alone.

Legend: B batch, T positions, D width, H heads, K head width, h half of it.
"""

import torch
from torch import Tensor, nn

from multimodal.attention import attend


def rotary_angles(length: int, head_width: int, *, theta: float = 10_000.0, device: torch.device) -> Tensor:
    """Angles [T, h] in fp32 of positions 0 to `length` - 1, the fastest frequency first."""
    frequencies_h = 1.0 / theta ** (torch.arange(0, head_width, 2, device=device).float() / head_width)
    return torch.arange(length, device=device).float()[:, None] * frequencies_h


def rotate(x_BHTK: Tensor, angles_Th: Tensor) -> Tensor:
    """Turn each pair of numbers (i, i + h) of a head by its angle; in fp32, the result in the dtype of `x_BHTK`."""
    cos_Th, sin_Th = angles_Th.cos(), angles_Th.sin()
    first, second = x_BHTK.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos_Th - second * sin_Th, second * cos_Th + first * sin_Th], dim=-1)
    return turned.to(x_BHTK.dtype)


class RotarySelfAttention(nn.Module):
    """Bidirectional self-attention with rotary positions, all projections with biases.

    Args:
        width: of input and output; divides into heads of even width.
        heads: attention heads.
    """

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor | None = None, lengths: tuple[int, ...] | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D].

        Args:
            valid_BT: True where a position may be looked at, at least once in a row; None: everywhere.
            lengths: rows hold several sequences of these lengths end to end, each of which looks at itself alone;
                their positions begin at 0.
        """
        q, k, v = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        angles_Th = rotary_angles(max(lengths or (x_BTD.shape[1],)), q.shape[-1], device=x_BTD.device)
        if lengths is not None:
            angles_Th = torch.cat([angles_Th[:length] for length in lengths])
        q, k = rotate(q, angles_Th), rotate(k, angles_Th)
        if lengths is None:
            mask = None if valid_BT is None else valid_BT[:, None, None, :]
            out_BHTK = attend(q, k, v, mask=mask)
        else:
            sequences = zip(*(t.split(lengths, dim=2) for t in (q, k, v)), strict=True)
            out_BHTK = torch.cat([attend(*qkv) for qkv in sequences], dim=2)
        return self.out(out_BHTK.transpose(1, 2).flatten(2))
