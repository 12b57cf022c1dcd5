"""Which frames of a clip each word looked at: the video layers' weights over merged frames, times the aggregator's
weights over the frames that were merged.

Legend: T text positions, S memory tokens of a row, M groups of all clips, Q latents, P tokens of the largest group, F
frames of a clip, H heads, K head dimension.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from multimodal.attention_weights import record_cross_attention
from multimodal.batch import Sample
from multimodal.messages import Message
from multimodal.model import MultimodalModel
from multimodal.tokenizer import pieces_of
from vision.attention_map import merge_tokens
from vision.clip_frames import ClipFrames
from vision.temporal_aggregator import ResamplerLayer


@contextmanager
def record_resampler(layers: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Within, every call of one of the aggregator's layers appends the weights [M, Q, P] of its latents over the tokens
    of the frames to the list: the mean over heads, without what the latents look at among themselves, sum 1."""
    looks: list[Tensor] = []

    def record(layer: nn.Module, args: tuple[Tensor, Tensor, Tensor | None]) -> None:
        assert isinstance(layer, ResamplerLayer)
        z_MQD, x_MSD, mask_M11S = args
        q_MHQK, k_MHTK, _ = layer.project(z_MQD, x_MSD)
        k_MHPK = k_MHTK[:, :, : x_MSD.shape[1]].float()
        scores_MHQP = q_MHQK.float() @ k_MHPK.transpose(-1, -2) / q_MHQK.shape[-1] ** 0.5
        if mask_M11S is not None:
            scores_MHQP = scores_MHQP.masked_fill(~mask_M11S, -torch.inf)
        looks.append(scores_MHQP.softmax(-1).mean(1))

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(record).remove)
        yield looks


@torch.no_grad()
def word_frame_weights(model: MultimodalModel, messages: list[Message], answer: str) -> tuple[list[str], list[Tensor]]:
    """Where each word of an answer to a conversation looked: means over layers and heads.

    Returns:
        the words; for each clip weights [words, F], which over all clips that a word may see sum to 1.
    """
    modality: Any = model.modalities["video"]
    sample: Sample = model.sample(messages, answer)
    turn, ids = sample.turns[0], sample.turns[0].answer[:-1]
    clips: list[ClipFrames] = list(sample.media["video"])
    batch = model.collate([sample]).to(model.device)
    with record_cross_attention(modality.adapter.layers.values()) as looks:
        with record_resampler(modality.adapter.aggregator.layers) as reads:
            memory = model.memory(batch)
        model.decoder.hidden(batch.input_ids, batch.attention_mask, memory=memory, inserted=model.inserted(batch))
    first = batch.input_ids.shape[1] - len(turn.answer) - 1
    weights_TS = torch.stack(looks).mean(0)[0, first:][: len(ids)].float().cpu()
    words, weights_WS = merge_tokens(pieces_of(model.tokenizer, ids), weights_TS)
    read_MQP = torch.stack(reads).mean(0).float().cpu()
    return words, _by_frame(weights_WS, read_MQP, clips, modality)


def _by_frame(weights_WS: Tensor, read_MQP: Tensor, clips: list[ClipFrames], modality: Any) -> list[Tensor]:
    """Weights over merged tokens -> weights over frames, clip by clip."""
    group: int = modality.adapter.aggregator.config.group
    per_tile: int = modality.image.encoder.tokens_per_tile
    latents, at, groups = read_MQP.shape[1], 0, iter(read_MQP)
    found = []
    for clip in clips:
        lengths = [rows * columns * per_tile for rows, columns in clip.grids]
        parts = []
        for start in range(0, len(clip), group):
            own = lengths[start : start + group]
            share_QF = torch.stack([t.sum(-1) for t in next(groups)[:, : sum(own)].split(own, dim=-1)], dim=-1)
            parts.append(weights_WS[:, at : at + latents] @ share_QF)
            at += latents
        found.append(torch.cat(parts, dim=1))
    return found
