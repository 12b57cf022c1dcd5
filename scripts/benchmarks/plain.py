"""The plain way: the same model without the tricks that make it fast, one or all of them taken away.

Each trick is taken away at the one place where it lives, for the time of a step, so that what is left is what somebody
would write with stock modules. Results stay the same (the benchmark checks), time and memory do not.

Legend: M pictures, n tiles that each is padded to, L tokens of a tile, D width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal import attention, memory
from multimodal import model as model_module
from multimodal.batch import Batch
from multimodal.errors import UserError
from multimodal.loss import IGNORE
from multimodal.model import MultimodalModel
from vision.encoder import ImageEncoder, ImageFeatures
from vision.tiling import TileBatch

Without = Callable[[MultimodalModel], AbstractContextManager[Any]]


@contextmanager
def gradients_everywhere(model: MultimodalModel) -> Iterator[None]:
    """Embeddings require grad, so that the layers below the first adapter keep activations and run backward too."""
    table = model.decoder.lm.get_input_embeddings()
    handle = table.register_forward_hook(lambda _m, _a, out: out.requires_grad_() if torch.is_grad_enabled() else out)
    try:
        yield
    finally:
        handle.remove()


def padded_tiles(model: MultimodalModel) -> AbstractContextManager[Any]:
    """Every picture is padded to the most tiles, with a dense mask."""
    encoder: Any = model.modalities["image"].encoder  # type: ignore[union-attr]
    return mock.patch.object(encoder, "forward", lambda batch: _forward_padded(encoder, batch))


def _forward_padded(encoder: ImageEncoder, batch: TileBatch) -> ImageFeatures:
    n, lengths = encoder.config.max_tiles, batch.lengths
    rows_T = encoder._layout(batch).rows_T
    x_TLD = encoder.stem(batch.pixels).flatten(2).transpose(1, 2)
    x_TLD = torch.cat([encoder.class_token_D.expand(len(x_TLD), 1, -1), encoder.pre_tile(x_TLD, rows_T)], dim=1)
    x_TLD = encoder.norm_pre(x_TLD + encoder.positions(rows_T))
    there_Mn = torch.arange(n, device=x_TLD.device) < torch.tensor(lengths, device=x_TLD.device)[:, None]
    tokens = x_TLD.shape[1]
    keys_MS = there_Mn.repeat_interleave(tokens, dim=1)
    mask = keys_MS[:, None, None, :].expand(-1, 1, keys_MS.shape[1], -1).contiguous()
    x = x_TLD.new_zeros(len(lengths), n, *x_TLD.shape[1:])
    x[there_Mn] = x_TLD
    x, taps = x.flatten(1, 2), []
    for number, block in enumerate(encoder.layers, start=1):
        x = block(x, mask)
        if number in encoder.config.tap_layers:
            taps.append(x)
    x = encoder.norm_post(x).unflatten(1, (n, tokens))
    final = torch.zeros_like(x)
    final[there_Mn] = encoder.post_tile(x[there_Mn], rows_T)
    x = final.flatten(1, 2)
    for block in encoder.global_layers:
        x = block(x, mask)
    normed = [norm(tap) for norm, tap in zip(encoder.tap_norms, taps, strict=True)]
    return ImageFeatures(torch.cat([x, *normed], dim=-1)[keys_MS], tuple(count * tokens for count in lengths))


def all_rows_read(_model: MultimodalModel) -> AbstractContextManager[Any]:
    """Cross-attention computes every position, with a dense mask, and throws away what sees nothing."""
    return mock.patch.object(memory, "_readers", lambda *_: None)


def text_beside_pictures(_model: MultimodalModel) -> AbstractContextManager[Any]:
    """Rows without a picture go through adapters and backward like the others."""
    return mock.patch.object(Batch, "rows_with_media", lambda batch: set(range(len(batch.input_ids))))


def full_logits(_model: MultimodalModel) -> AbstractContextManager[Any]:
    """Logits of every position, in fp32, and their gradient."""

    def loss(hidden_BTD: Tensor, targets_BT: Tensor, decoder: Any, **_: Any) -> tuple[Tensor, int]:
        logits = decoder.head(hidden_BTD).float().flatten(0, 1)
        targets = targets_BT.flatten()
        total = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        return total, int((targets != IGNORE).sum())

    return mock.patch.object(model_module, "frozen_head_loss", loss)


def padding_masks(model: MultimodalModel) -> AbstractContextManager[Any]:
    """The decoder is told which positions are padding, though nothing real ever sees them."""
    hidden, pad = model.decoder.hidden, model.pad_id

    def masked(ids: Tensor, mask: Tensor | None = None, **kw: Any) -> Tensor:
        return hidden(ids, (ids != pad).long() if mask is None else mask, **kw)

    return mock.patch.object(model.decoder, "hidden", masked)


def one_length(_model: MultimodalModel) -> AbstractContextManager[Any]:
    """All rows are padded to the longest."""

    def together(lengths: Sequence[int]) -> list[list[int]]:
        return [list(range(len(lengths)))]

    return mock.patch.object(model_module, "length_groups", together)


def expanded_heads(_model: MultimodalModel) -> AbstractContextManager[Any]:
    """Keys and values are copied for every query head that shares them."""
    fused = attention._attend_in_best_dtype

    def expanded(q: Tensor, k: Tensor, v: Tensor, **kw: Any) -> Tensor:
        times = q.shape[1] // k.shape[1]
        return fused(q, k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1), **kw)

    return mock.patch.object(attention, "_attend_in_best_dtype", expanded)


TRICKS: dict[str, Without] = {
    "free-prefix": gradients_everywhere,
    "real-tiles": padded_tiles,
    "row-slicing": all_rows_read,
    "text-apart": text_beside_pictures,
    "frozen-head-loss": full_logits,
    "no-padding-mask": padding_masks,
    "length-groups": one_length,
    "shared-heads": expanded_heads,
}
"""Name of each trick -> how to take it away from a model."""


def tricks_to_remove(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Rows to measure: each of the names for itself; without names each trick, and all of them.

    Raises:
        UserError: an unknown name.
    """
    for name in names:
        if name not in TRICKS:
            raise UserError(f"--without {name}: expected one of {', '.join(TRICKS)}")
    return [(name,) for name in names] or [*((name,) for name in TRICKS), tuple(TRICKS)]


@contextmanager
def without(model: MultimodalModel, names: Sequence[str]) -> Iterator[None]:
    """Within, a model works without some tricks."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(TRICKS[name](model))
        yield
