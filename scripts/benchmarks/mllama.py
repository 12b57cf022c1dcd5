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
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from multimodal.batch import Batch
from multimodal.cross_attention import GatedCrossAttention
from multimodal.loss import IGNORE
from multimodal.model import MultimodalModel
from vision.encoder import Block, ImageEncoder
from vision.image_adapter import ImageAdapter
from vision.positions import first_tile_rows
from vision.tiling import TileBatch, candidate_grids

TILES = 4
"""That every picture is padded to."""


def mllama_of(model: MultimodalModel) -> MllamaForConditionalGeneration:
    """The peer with the weights of a model of ours. What is frozen is shared, what is trained is copied."""
    lm: Any = model.decoder.lm
    image: Any = model.modalities["image"]
    encoder, adapter = image.encoder, image.adapter
    placed = [int(layer) for layer in adapter.layers]
    cross_layers = [layer + number for number, layer in enumerate(placed)]
    config = _config(model, encoder, cross_layers)
    with torch.device("meta"):
        peer = MllamaForConditionalGeneration(config)
    state = {**_text_state(model, placed), **_vision_state(encoder), **_projector_state(adapter, encoder)}
    trained = {name: t.detach().clone() for name, t in state.items() if not _is_frozen(name, cross_layers)}
    peer.load_state_dict({name: t.detach() for name, t in state.items()} | trained, assign=True)
    peer.model.language_model.rotary_emb = modeling_mllama.MllamaRotaryEmbedding(
        config.get_text_config()  # type: ignore[arg-type]
    ).to(lm.device)
    for name, parameter in peer.named_parameters():
        parameter.requires_grad_(name in trained)
    peer.generation_config.eos_token_id = None  # as ours: every generation is as long as asked
    return peer.train()


def _is_frozen(name: str, cross_layers: list[int]) -> bool:
    """Whether it belongs to the decoder: by the layer's number, for names of cross-attention layers are like others."""
    if not name.startswith("model.language_model.layers."):
        return name.startswith(("model.language_model.", "lm_head."))
    return int(name.split(".")[3]) not in cross_layers


def _config(model: MultimodalModel, encoder: ImageEncoder, cross_layers: list[int]) -> MllamaConfig:
    lm, shape = model.decoder.lm.config, encoder.config
    text = MllamaTextConfig(
        vocab_size=lm.vocab_size,
        hidden_size=lm.hidden_size,
        num_hidden_layers=lm.num_hidden_layers + len(cross_layers),
        num_attention_heads=lm.num_attention_heads,
        num_key_value_heads=lm.num_key_value_heads,
        intermediate_size=lm.intermediate_size,
        rms_norm_eps=lm.rms_norm_eps,
        rope_parameters=lm.rope_parameters,
        max_position_embeddings=lm.max_position_embeddings,
        cross_attention_layers=cross_layers,
        tie_word_embeddings=False,
        pad_token_id=lm.pad_token_id,
        bos_token_id=lm.pad_token_id,  # it must have some within the vocabulary
        eos_token_id=lm.pad_token_id,
    )
    vision = MllamaVisionConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_global_layers=shape.global_layers,
        attention_heads=shape.heads,
        intermediate_size=round(shape.width * shape.mlp_ratio),
        vision_output_dim=encoder.feature_dim,
        image_size=shape.tile_size,
        patch_size=shape.patch_size,
        norm_eps=1e-5,
        max_num_tiles=TILES,
        intermediate_layers_indices=[tap - 1 for tap in shape.tap_layers],
        supported_aspect_ratios=[list(grid) for grid in candidate_grids(TILES)],
    )
    return MllamaConfig(text_config=text, vision_config=vision, image_token_index=lm.vocab_size)


def _text_state(model: MultimodalModel, placed: list[int]) -> dict[str, Tensor]:
    lm: Any = model.decoder.lm
    blocks: Any = model.modalities["image"].adapter.layers  # type: ignore[union-attr]
    extra = model.decoder.extra_embedding.weight
    base = "model.language_model"
    state: dict[str, Tensor] = {
        f"{base}.embed_tokens.weight": torch.cat([lm.model.embed_tokens.weight, extra.to(lm.dtype)]),
        f"{base}.norm.weight": lm.model.norm.weight,
        "lm_head.weight": lm.lm_head.weight,
    }
    number = 0
    for index, layer in enumerate(lm.model.layers):
        if index in placed:
            state |= _cross_state(f"{base}.layers.{number}", blocks[str(index)])
            number += 1
        state |= {f"{base}.layers.{number}.{name}": tensor for name, tensor in layer.state_dict(keep_vars=True).items()}
        number += 1
    return state


def _cross_state(at: str, block: GatedCrossAttention) -> dict[str, Tensor]:
    return {
        f"{at}.input_layernorm.weight": block.attn_norm.weight,
        f"{at}.post_attention_layernorm.weight": block.ffn_norm.weight,
        f"{at}.cross_attn_attn_gate": block.attn_gate.weight.view(1),
        f"{at}.cross_attn_mlp_gate": block.ffn_gate.weight.view(1),
        f"{at}.mlp.gate_proj.weight": block.ffn.gate.weight,
        f"{at}.mlp.up_proj.weight": block.ffn.up.weight,
        f"{at}.mlp.down_proj.weight": block.ffn.down.weight,
        **{f"{at}.cross_attn.{p}_proj.weight": getattr(block, f"{p}_proj").weight for p in "qkvo"},
        **{f"{at}.cross_attn.{p}_norm.weight": getattr(block, f"{p}_norm").weight for p in "qk"},
    }


def _projector_state(adapter: ImageAdapter, encoder: ImageEncoder) -> dict[str, Tensor]:
    weight, width = adapter.projector.weight, encoder.config.width
    taps = weight[:, width:].unflatten(1, (-1, width)).transpose(1, 2).flatten(1)
    name = "model.multi_modal_projector"
    return {f"{name}.weight": torch.cat([weight[:, :width], taps], dim=1), f"{name}.bias": adapter.projector.bias}


def _vision_state(encoder: ImageEncoder) -> dict[str, Tensor]:
    at = "model.vision_model"
    stem: Any = encoder.stem
    state: dict[str, Tensor] = {
        f"{at}.patch_embedding.weight": stem.weight,
        f"{at}.class_embedding": encoder.class_token_D,
        f"{at}.gated_positional_embedding.embedding": encoder.positions.local_LD,
        f"{at}.gated_positional_embedding.gate": encoder.positions.gate.weight.view(1),
        f"{at}.gated_positional_embedding.tile_embedding.weight": _by_ratio(encoder.positions.tiled_RLD.flatten(1)),
    }
    for name, tiles in (("pre", encoder.pre_tile), ("post", encoder.post_tile)):
        state[f"{at}.{name}_tile_positional_embedding.embedding.weight"] = _by_ratio(tiles.table_RD)
        state[f"{at}.{name}_tile_positional_embedding.gate"] = tiles.gate.weight.view(1)
    for name, norm in (("layernorm_pre", encoder.norm_pre), ("layernorm_post", encoder.norm_post)):
        state |= {f"{at}.{name}.weight": norm.weight, f"{at}.{name}.bias": norm.bias}
    for stack, blocks in (("transformer", encoder.layers), ("global_transformer", encoder.global_layers)):
        for number, block in enumerate(blocks):
            assert isinstance(block, Block)
            state |= _block_state(f"{at}.{stack}.layers.{number}", block, gated=stack == "global_transformer")
    return state


def _by_ratio(table_RC: Tensor) -> Tensor:
    """One row for each tile of each grid -> one for each aspect ratio, padded to four tiles; row 0 is no picture."""
    rows = [table_RC.new_zeros(TILES, table_RC.shape[1])]
    for (height, width), first in first_tile_rows(TILES).items():
        tiles = table_RC[first : first + height * width]
        rows.append(torch.cat([tiles, tiles.new_zeros(TILES - len(tiles), tiles.shape[1])]))
    return torch.stack(rows).flatten(1)


def _block_state(at: str, block: Block, *, gated: bool) -> dict[str, Tensor]:
    mlp: Any = block.mlp
    state = {
        f"{at}.self_attn.o_proj.weight": block.out.weight,
        f"{at}.mlp.fc1.weight": mlp[0].weight,
        f"{at}.mlp.fc1.bias": mlp[0].bias,
        f"{at}.mlp.fc2.weight": mlp[2].weight,
        f"{at}.mlp.fc2.bias": mlp[2].bias,
        f"{at}.input_layernorm.weight": block.norm_attention.weight,
        f"{at}.input_layernorm.bias": block.norm_attention.bias,
        f"{at}.post_attention_layernorm.weight": block.norm_mlp.weight,
        f"{at}.post_attention_layernorm.bias": block.norm_mlp.bias,
    }
    for name, weight in zip("qkv", block.qkv.weight.chunk(3), strict=True):
        state[f"{at}.self_attn.{name}_proj.weight"] = weight
    if gated:
        gates: tuple[Any, Any] = (block.gate_attention, block.gate_mlp)
        state[f"{at}.gate_attn"], state[f"{at}.gate_ffn"] = (gate.weight.view(1) for gate in gates)
    return state


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
