"""Where cross-attention goes in a decoder (Llama 3 paper, section 7.2 / spec A4.3)."""

import math
from collections.abc import Sequence

from multimodal.errors import UserError


def cross_attention_layers(n_layers: int, n_cross: int) -> list[int]:
    """Decoder layers (zero-based, ascending) that get a cross-attention block directly before them.

    Every k-th layer counting back from the last, k = ceil(n_layers / n_cross); 32 layers and 8 blocks give 3, 7, ...,
    31. No block follows the last layer, where its information would reach the output head only. Where this k leaves
    room for fewer blocks than asked for, it is one less: 126 layers and 31 blocks (405B) give 5, 9, ..., 125.

    Raises:
        UserError: `n_cross` is not between 1 and `n_layers`.
    """
    if not 1 <= n_cross <= n_layers:
        raise UserError(
            f"{n_cross} cross-attention layers for a decoder of {n_layers} layers; expected 1 to {n_layers}"
        )
    step = math.ceil(n_layers / n_cross)
    if (n_cross - 1) * step >= n_layers:
        step -= 1
    return list(range(n_layers - 1, -1, -step))[:n_cross][::-1]


def every_nth(layers: Sequence[int], n: int) -> list[int]:
    """Every n-th of some layers, counting back from the last: where the video layers stand among the image
    cross-attention layers (spec A5.2). Of 8, every fourth gives the 4th and the 8th; of fewer than n, the last one.

    Raises:
        UserError: n is below 1.
    """
    if n < 1:
        raise UserError(f"video layers before every {n} image cross-attention layers; expected 1 or more")
    return list(layers)[::-1][::n][::-1]
