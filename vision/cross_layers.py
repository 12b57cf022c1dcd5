"""The gated cross-attention layers of an adapter, whatever feeds them: their places and sizes, and which row of a batch
reads which media.

Llama 3 paper, section 7.2 / spec A4. Keys and values are made once for each medium, also when several rows of the batch
look at it, and are then gathered row by row.

Legend: B rows, S memory tokens of the longest row, N memory tokens of all media, D decoder width, G key/value heads, K
head dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multimodal.batch import MediaBatch
from multimodal.cross_attention import GatedCrossAttention
from multimodal.decoder_sizes import DecoderSizes
from multimodal.errors import UserError
from multimodal.layers import TanhGate
from multimodal.memory import AdapterMemory


@dataclass(frozen=True, kw_only=True)
class CrossLayersConfig:
    """Sizes of the cross-attention layers; 0 takes the decoder's own size (spec A4.1)."""

    heads: int = 0
    kv_heads: int = 0
    ffn: int = 0


class CrossLayers(nn.ModuleDict):
    """Gated cross-attention before some layers of a decoder, by the layer's number.

    Args:
        config: sizes.
        decoder: sizes of the decoder.
        placed: layers of the decoder, rising.

    Raises:
        UserError: heads that are no multiple of the key/value heads, or too many.
    """

    def __init__(self, config: CrossLayersConfig, *, decoder: DecoderSizes, placed: Sequence[int]) -> None:
        heads = config.heads or decoder.heads
        kv_heads = config.kv_heads or (decoder.kv_heads if not config.heads else heads)
        if heads % kv_heads or heads > decoder.width:
            raise UserError(
                f"cross-attention layers: {heads} heads, {kv_heads} key/value heads; expected at most the decoder's "
                f"width {decoder.width}, and a multiple of the key/value heads"
            )
        super().__init__(
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

    def memory(self, tokens_ND: Tensor, lengths: tuple[int, ...], batch: MediaBatch) -> AdapterMemory:
        """Keys and values for every row of the batch, from the tokens of its media, of which each has some length."""
        index_BS, memory_group = _gather_plan(lengths, batch)
        in_order = torch.equal(index_BS.flatten(), torch.arange(sum(lengths)))  # nothing to gather
        index_BS, memory_group = index_BS.to(tokens_ND.device), memory_group.to(tokens_ND.device)
        keys: dict[int, Tensor] = {}
        values: dict[int, Tensor] = {}
        for name, layer in self.items():
            assert isinstance(layer, GatedCrossAttention)
            k_1GNK, v_1GNK = layer.project(tokens_ND[None])
            keys[int(name)], values[int(name)] = (
                (t[0] if in_order else t[0].index_select(1, index_BS.flatten()))
                .unflatten(1, index_BS.shape)
                .transpose(0, 1)
                for t in (k_1GNK, v_1GNK)
            )
        return AdapterMemory(keys, values, memory_group, batch.token_group)


def split_gates(
    adapter: nn.Module,
) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """The gates of an adapter, and all its other parameters: they learn at different rates."""
    gates = {f"{name}.weight" for name, module in adapter.named_modules() if isinstance(module, TanhGate)}
    named = list(adapter.named_parameters())
    return [pair for pair in named if pair[0] in gates], [pair for pair in named if pair[0] not in gates]


def gate_values(adapter: nn.Module) -> dict[str, float]:
    """tanh of each gate, by name: how much of its branch it lets through."""
    gates = {name: module for name, module in adapter.named_modules() if isinstance(module, TanhGate)}
    return {name: torch.tanh(gate.weight.detach()).item() for name, gate in gates.items()}


def own_columns(lengths: tuple[int, ...], batch: MediaBatch) -> Tensor:
    """For each memory token the column of its own placeholder, [B, S] in the order of `CrossLayers.memory`: then the
    placeholders of one group see the media up to their own, as in the released model. Media take one token each.
    """
    columns: list[list[int]] = []
    for row, groups in zip(batch.rows, batch.token_group.tolist(), strict=True):
        columns.append([])
        before = dict.fromkeys(groups, 0)
        for medium, group in row:
            columns[-1] += [groups.index(group) + before[group]] * lengths[medium]
            before[group] += 1
    longest = max(map(len, columns))
    padded = [row + [0] * (longest - len(row)) for row in columns]
    return torch.tensor(padded, dtype=torch.long, device=batch.token_group.device)


def _gather_plan(lengths: tuple[int, ...], batch: MediaBatch) -> tuple[Tensor, Tensor]:
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
    return index, groups
