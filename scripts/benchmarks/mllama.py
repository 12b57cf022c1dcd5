"""`transformers` mllama with our model's sizes and weights, and its inputs for our batches.

Its function is ours but for these points, which are levelled here so that outputs agree:

- it takes feature taps after a layer counted from 0, we count from 1: a matter of configuration;
- its taps are interleaved channel by channel: the projector's columns are put in that order;
- its mask for padded tiles keeps padding from padding alone, so that real tokens see padded tiles. `strict_masks` puts
  a mask of the same shape and type in its place that keeps padding from everybody, which costs the same;
- text before a picture sees it, and so does a row without one: pictures stand first, and rows without one go through
  the model apart, without cross-attention (its processor refuses them beside pictures anyway).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama import modeling_mllama

from multimodal.batch import Batch
from multimodal.loss import IGNORE
from multimodal.model import MultimodalModel
from vision.mllama import tensors_of
from vision.mllama_config import mllama_config, sizes_of
from vision.mllama_names import rows_of, written_from
from vision.tiling import TileBatch, candidate_grids

TILES = 4
"""That every picture is padded to."""


@torch.no_grad()
def mllama_of(model: MultimodalModel) -> MllamaForConditionalGeneration:
    """The peer with the weights of a model of ours. What is frozen is shared, what is trained is copied."""
    lm: Any = model.decoder.lm
    config = _config(model)
    with torch.device("meta"):
        peer = MllamaForConditionalGeneration(config)
    ours, sizes = tensors_of(model), sizes_of(config, "strict")
    rows, state = rows_of(sizes), peer.state_dict()
    frozen = {name for name, parts in rows.items() if parts[0].ours.startswith("lm.")}
    for name, empty in state.items():
        first = ours[rows[name][0].ours].detach()
        if name in frozen and len(rows[name]) == 1:
            state[name] = first
        else:
            state[name] = written_from(ours, first.new_zeros(empty.shape), rows[name], sizes)
    peer.load_state_dict(state, assign=True)
    peer.model.language_model.rotary_emb = modeling_mllama.MllamaRotaryEmbedding(
        config.get_text_config()  # type: ignore[arg-type]
    ).to(lm.device)
    for name, parameter in peer.named_parameters():
        parameter.requires_grad_(name not in frozen)
    peer.generation_config.eos_token_id = None  # as ours: every generation is as long as asked
    return peer.train()


def _config(model: MultimodalModel) -> MllamaConfig:
    lm: Any = model.decoder.lm
    image: Any = model.modalities["image"]
    config: Any = mllama_config(lm, image.config, dtype=lm.dtype)
    vision = config.vision_config
    vision.intermediate_layers_indices = [tap - 1 for tap in vision.intermediate_layers_indices]
    return config


def picture_inputs(batch: Batch) -> list[dict[str, Tensor]]:
    """The peer's inputs: for the rows with a picture and, if there are any, for those without, apart.

    Each cut to its own longest row; labels are not shifted, as `transformers` shifts them itself.
    """
    with_media = sorted(batch.rows_with_media())
    others = [row for row in range(len(batch.input_ids)) if row not in with_media]
    parts = []
    for rows in (with_media, others):
        if rows:
            columns_T = torch.arange(1, batch.input_ids.shape[1] + 1, device=batch.input_ids.device)
            length = int((batch.attention_mask[rows] * columns_T).max())
            start = 0 if batch.attention_mask[rows, 0].all() else None  # left padding: nothing is cut
            columns = slice(0, length if start == 0 else None)
            parts.append(
                _text_inputs(batch, rows, columns) | (_media_inputs(batch, rows, columns) if rows is with_media else {})
            )
    return parts


def _text_inputs(batch: Batch, rows: list[int], columns: slice) -> dict[str, Tensor]:
    targets = batch.targets[rows, columns]
    labels = torch.cat([torch.full_like(targets[:, :1], IGNORE), targets[:, :-1]], dim=1)
    return {
        "input_ids": batch.input_ids[rows, columns],
        "attention_mask": batch.attention_mask[rows, columns],
        "labels": labels,
    }


def _media_inputs(batch: Batch, rows: list[int], columns: slice) -> dict[str, Tensor]:
    media = batch.media["image"]
    items: TileBatch = media.items
    pictures = items.pixels.split(items.lengths)
    ratio = {grid: number for number, grid in enumerate(candidate_grids(TILES), start=1)}
    pixels = items.pixels.new_zeros(len(rows), 1, TILES, *items.pixels.shape[1:])
    ids = torch.zeros(len(rows), 1, dtype=torch.long, device=pixels.device)
    there = torch.zeros(len(rows), 1, TILES, dtype=torch.long, device=pixels.device)
    for at, row in enumerate(rows):
        ((number, _),) = media.rows[row]
        tiles = pictures[number]
        pixels[at, 0, : len(tiles)], ids[at, 0], there[at, 0, : len(tiles)] = tiles, ratio[items.grids[number]], 1
    sees = (media.token_group[rows, columns] > 0).long()
    return {
        "pixel_values": pixels,
        "aspect_ratio_ids": ids,
        "aspect_ratio_mask": there,
        "cross_attention_mask": sees[:, :, None, None] * there[:, None],
    }


def mllama_loss(peer: MllamaForConditionalGeneration, parts: list[dict[str, Tensor]]) -> tuple[Tensor, int]:
    """Summed cross-entropy and the number of its tokens."""
    with strict_masks():
        losses = [peer(**part, num_items_in_batch=torch.ones((), device=peer.device)).loss for part in parts]
    return torch.stack([loss.float() for loss in losses]).sum(), sum(int((p["labels"] != IGNORE).sum()) for p in parts)


@contextmanager
def strict_masks() -> Iterator[None]:
    """Padded tiles and padded tokens are seen by nobody, as in our encoder (see above)."""
    with mock.patch.object(modeling_mllama, "_prepare_aspect_ratio_attention_mask", _strict_mask):
        yield


def _strict_mask(aspect_ratio_mask: Tensor, num_patches: int, target_length: int, dtype: torch.dtype) -> Tensor:
    """[pictures, 1, S, S] additive, S = tiles * target_length: 0 where a key is real, else the lowest number."""
    there = aspect_ratio_mask.to(dtype)[:, :, None].repeat(1, 1, target_length)
    there[:, :, num_patches:] = 0
    hidden = (1 - there.flatten(1))[:, None, :] * torch.finfo(dtype).min
    return hidden.repeat(1, hidden.shape[-1], 1)[:, None]
