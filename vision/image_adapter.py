"""The image adapter: a projector into the decoder's width, and gated cross-attention layers that read what it gives.

Llama 3 paper, section 7.2 / spec A4. One projection serves all layers; keys and values are made once for each picture,
also when several rows of the batch look at it, and are then gathered row by row.

Legend: B rows, S memory tokens of the longest row, N memory tokens of all pictures, C feature width, D decoder width,
G key/value heads, K head dimension.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multimodal.batch import MediaBatch
from multimodal.cross_attention import GatedCrossAttention
from multimodal.errors import UserError
from multimodal.memory import AdapterMemory
from multimodal.placement import cross_attention_layers
from vision.encoder import ImageFeatures


@dataclass(frozen=True, kw_only=True)
class ImageAdapterConfig:
    """Sizes of the cross-attention layers; 0 takes the decoder's own size (spec A4.1)."""

    cross_layers: int = 2
    """Cross-attention layers, spread over the decoder counting back from its last layer (spec A4.3)."""
    heads: int = 0
    kv_heads: int = 0
    ffn: int = 0
    dropout: float = 0.0
    """Dropout on the projected features, in training."""


@dataclass(frozen=True)
class DecoderSizes:
    """What an adapter must know of its decoder."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    eps: float


class ImageAdapter(nn.Module):
    """Projector and cross-attention layers for one decoder.

    Args:
        config: sizes.
        decoder: sizes of the decoder.
        feature_dim: C of the image encoder's features.

    Raises:
        UserError: heads that are no multiple of the key/value heads, or more layers than the decoder has.
    """

    def __init__(self, config: ImageAdapterConfig, *, decoder: DecoderSizes, feature_dim: int) -> None:
        super().__init__()
        self.config = config
        heads = config.heads or decoder.heads
        kv_heads = config.kv_heads or (decoder.kv_heads if not config.heads else heads)
        if heads % kv_heads or heads > decoder.width:
            raise UserError(
                f"image adapter: {heads} heads, {kv_heads} key/value heads; expected at most the decoder's width "
                f"{decoder.width}, and a multiple of the key/value heads"
            )
        placed = cross_attention_layers(decoder.layers, config.cross_layers)
        self.projector = nn.Linear(feature_dim, decoder.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleDict(
            {
                str(layer): GatedCrossAttention(
                    dim=decoder.width,
                    heads=heads,
                    kv_heads=kv_heads,
                    head_dim=decoder.width // heads,
                    ffn_dim=config.ffn or decoder.ffn,
                    eps=decoder.eps,
                    n_layers=len(placed),
                )
                for layer in placed
            }
        )

    def memory(self, features: ImageFeatures, batch: MediaBatch) -> AdapterMemory:
        """Keys and values for every row of the batch, from the features [N, C] of its pictures."""
        index_BS, memory_group = _gather_plan(features.lengths, batch, device=features.tokens.device)
        memory_ND = self.dropout(self.projector(features.tokens))
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        for name, layer in self.layers.items():
            assert isinstance(layer, GatedCrossAttention)
            k_1GNK, v_1GNK = layer.project(memory_ND[None])
            keys[int(name)], values[int(name)] = (
                t[0].index_select(1, index_BS.flatten()).unflatten(1, index_BS.shape).transpose(0, 1)
                for t in (k_1GNK, v_1GNK)
            )
        return AdapterMemory(keys, values, memory_group, batch.token_group)


def _gather_plan(lengths: tuple[int, ...], batch: MediaBatch, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each row the indices [B, S] of its memory tokens among all, and their groups (-1 = padding, index 0)."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    rows = [[(starts[p], lengths[p], group) for p, group in row] for row in batch.rows]
    longest = max(sum(length for _, length, _ in row) for row in rows)
    index = torch.zeros(len(rows), longest, dtype=torch.long)
    groups = torch.full((len(rows), longest), -1)
    for b, row in enumerate(rows):
        at = 0
        for start, length, group in row:
            index[b, at : at + length] = torch.arange(start, start + length)
            groups[b, at : at + length] = group
            at += length
    return index.to(device), groups.to(device)
