"""What a gated cross-attention block looked at: its weights, computed again beside it, because fused kernels keep none.

Legend: B batch, T text positions, S memory tokens, D decoder width, H query heads, G key/value heads, K head dimension.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from multimodal.cross_attention import GatedCrossAttention


@torch.no_grad()
def head_weights(layer: GatedCrossAttention, hidden_BTD: Tensor, k_BGSK: Tensor, mask_BTS: Tensor) -> Tensor:
    """Attention weights [B, H, T, S] in fp32 of each head (Llama 3 paper, section 7.2 / spec A4.2).

    Args:
        layer: the block.
        hidden_BTD: its input.
        k_BGSK: keys from `layer.project`.
        mask_BTS: True where position t may see memory token s. Rows that see nothing get weights of 0.
    """
    q_BHTK = layer.query(hidden_BTD).float()
    k_BHSK = k_BGSK.float().repeat_interleave(q_BHTK.shape[1] // k_BGSK.shape[1], dim=1)
    scores_BHTS = q_BHTK @ k_BHSK.transpose(-1, -2) / layer.head_dim**0.5
    mask_B1TS = mask_BTS[:, None]
    weights_BHTS = scores_BHTS.masked_fill(~mask_B1TS, torch.finfo(torch.float32).min).softmax(-1)
    return weights_BHTS * mask_B1TS


def cross_attention_weights(layer: GatedCrossAttention, hidden_BTD: Tensor, k_BGSK: Tensor, mask_BTS: Tensor) -> Tensor:
    """Attention weights [B, T, S], the mean over heads of `head_weights`."""
    return head_weights(layer, hidden_BTD, k_BGSK, mask_BTS).mean(1)


@contextmanager
def record_cross_attention(layers: Iterable[GatedCrossAttention]) -> Iterator[list[Tensor]]:
    """Within, every call of one of `layers` appends its weights [B, T, S] to the list, in the order of the calls.

    Position t holds the look that chose token t + 1. Run the prompt and the finished text through the decoder once,
    rather than record while generating:

        with record_cross_attention(model.decoder.adapters["image"].layers.values()) as looks:
            model.decoder.hidden(ids, memory=memory)
        weights_BTS = torch.stack(looks).mean(0)
    """
    looks: list[Tensor] = []

    def record(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, GatedCrossAttention)
        hidden_BTD, k_BGSK, _, mask_BTS, *_ = args
        looks.append(cross_attention_weights(layer, hidden_BTD, k_BGSK, mask_BTS))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(record).remove)
        yield looks
