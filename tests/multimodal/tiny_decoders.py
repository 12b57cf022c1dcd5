"""Tiny random decoders by family name, a tiny adapter, and tiny memory, for every test that needs one.

    from tests.multimodal.tiny_decoders import FAMILIES, grafted, memory_of, prompt, tiny_adapter, tiny_decoder

A decoder has 4 layers, width 32 and a vocabulary of 97; it is fp32, random by seed, and its logits are of order one, so
that greedy decoding and soft-capping have something to show.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from multimodal.cross_attention import GatedCrossAttention
from multimodal.decoder import FrozenDecoder
from multimodal.memory import AdapterMemory, CrossMemory, token_groups

WIDTH, VOCAB, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 32, 97, 4, 4, 2, 8
PAD = 0
IMAGE = VOCAB  # id of the first extra token, used as the placeholder

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_GQA: dict[str, Any] = {"num_key_value_heads": KV_HEADS}
_GEMMA: dict[str, Any] = {**_GQA, "head_dim": HEAD_DIM, "query_pre_attn_scalar": HEAD_DIM, "sliding_window": 4}

# What each family is here for stands beside it.
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_GQA, "tie_word_embeddings": True}),
    "llama2": ("llama", {"num_key_value_heads": HEADS, "tie_word_embeddings": False}),  # a key head for each query head
    "qwen2": ("qwen2", _GQA),  # biases in attention
    "qwen3": ("qwen3", {**_GQA, "head_dim": HEAD_DIM}),  # q/k norm
    "mistral": ("mistral", {**_GQA, "sliding_window": 4}),
    "mixtral": ("mixtral", {**_GQA, "sliding_window": 4, "num_local_experts": 4}),  # experts
    "gemma2": ("gemma2", {**_GEMMA, "final_logit_softcapping": 1.0}),  # scaled embeddings, capped logits, mixed caches
    "gemma3": ("gemma3_text", {**_GEMMA, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "phi3": ("phi3", _GQA),  # fused projections
    "smollm3": ("smollm3", _GQA),  # layers without positions
    "olmo": ("olmo", {**_GQA, "clip_qkv": 1.0}),  # norms without weights, clipped projections
    "olmo2": ("olmo2", _GQA),  # norm after the branch
    "gpt_neox": ("gpt_neox", {"hidden_dropout": 0.3}),  # parallel branches, LayerNorm, own names, dropout
    "granite": ("granite", {**_GQA, "logits_scaling": 3.0}),
    "cohere": ("cohere", {**_GQA, "logit_scale": 0.25}),
}
FAMILIES = tuple(family for family in _FAMILIES if family not in ("granite", "cohere"))
SCALED_FAMILIES = ("granite", "cohere")
SLIDING_FAMILIES = tuple(family for family in FAMILIES if "sliding_window" in _FAMILIES[family][1])


def tiny_decoder(family: str = "llama", *, seed: int = 0, **overrides: Any) -> Any:
    """A causal decoder of transformers with random weights; `overrides` go into its config."""
    model_type, special = _FAMILIES[family]
    config = AutoConfig.for_model(model_type, **{**_COMMON, **special, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in lm.parameters():  # norms and biases too: no weight may be one that a bug can skip unseen
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return lm.eval()


class TinyAdapter(nn.Module):
    """Cross-attention blocks at the given layers, nothing else."""

    def __init__(self, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                str(layer): GatedCrossAttention(
                    dim=WIDTH, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, ffn_dim=48, n_layers=len(layers)
                )
                for layer in layers
            }
        )


def tiny_adapter(layers: tuple[int, ...] = (1, 3), *, gate: float = 1.0, seed: int = 1) -> TinyAdapter:
    """An adapter with random weights and its gates open (`gate=0` closes them)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter = TinyAdapter(layers)
        with torch.no_grad():
            for name, parameter in adapter.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.3)
                if name.endswith("gate.weight") and parameter.ndim == 0:
                    parameter.fill_(gate)
    return adapter


def tiny_memory(
    media: Tensor, is_placeholder: Tensor, *, memory_group: Tensor | None = None, **adapters: Any
) -> CrossMemory:
    """Memory of the named adapters for media tokens [B, S, WIDTH]; all of group 1 unless `memory_group` is given."""
    groups = token_groups(is_placeholder)
    memory_group = torch.ones(media.shape[:2], dtype=torch.long) if memory_group is None else memory_group
    by_adapter = {}
    for name, adapter in adapters.items():
        projected = {int(layer): block.project(media) for layer, block in adapter.layers.items()}
        keys, values = {i: kv[0] for i, kv in projected.items()}, {i: kv[1] for i, kv in projected.items()}
        by_adapter[name] = AdapterMemory(keys, values, memory_group, groups)
    return CrossMemory(by_adapter)


def grafted(family: str = "llama", **overrides: Any) -> FrozenDecoder:
    """A decoder with an open image adapter before layers 1 and 3."""
    decoder = FrozenDecoder(tiny_decoder(family, **overrides))
    decoder.attach("image", tiny_adapter())
    with torch.no_grad():
        torch.manual_seed(5)
        decoder.extra_embedding.weight.normal_(std=float(decoder.embed(torch.arange(VOCAB)).std()))
    return decoder


def prompt(rows: int = 3) -> tuple[Tensor, Tensor]:
    """Ids [3, 8] and their attention mask: media in the middle; text only; padded on the left with media in it."""
    torch.manual_seed(2)
    ids = torch.randint(1, VOCAB, (3, 8))
    ids[0, 3] = IMAGE
    ids[2, :3], ids[2, 4] = PAD, IMAGE
    mask = torch.ones_like(ids)
    mask[2, :3] = 0
    return ids[:rows], mask[:rows]


def memory_of(decoder: FrozenDecoder, ids: Tensor, *, seed: int = 3) -> CrossMemory:
    """Five media tokens a row for every attached adapter."""
    torch.manual_seed(seed)
    adapters: dict[str, Any] = dict(decoder.adapters.items())
    return tiny_memory(torch.randn(len(ids), 5, WIDTH), ids >= VOCAB, **adapters)


def greedy(decoder: FrozenDecoder, ids: Tensor, mask: Tensor, memory: CrossMemory | None, steps: int) -> Tensor:
    """Greedy decoding by hand, the whole sequence anew for every token."""
    start = ids.shape[1]
    for _ in range(steps):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        logits = decoder(ids, mask, memory=memory, position_ids=positions)
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return ids[:, start:]
