"""Train a small Llama-style decoder from nothing, and measure what adapters will ask of it.

Legend: B rows, T tokens, V vocabulary, H query heads, G key/value heads, K head dimension, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from multimodal.data.packing import IGNORE, PackedRows
from multimodal.data.text import chat_document
from multimodal.decoder_shape import DecoderShape
from multimodal.errors import UserError
from multimodal.tokenizer import AnyTokenizer


@dataclass(frozen=True, kw_only=True)
class NewDecoder:
    """Sizes of a small decoder to be trained: RMSNorm, RoPE, SwiGLU, grouped-query attention, tied embeddings (Llama 3
    paper, section 3.2).
    """

    width: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 704
    rope_theta: float = 10000.0
    """Low: texts are short, and fast rotations tell near positions apart."""

    def build(self, tokenizer: AnyTokenizer, *, context: int) -> LlamaForCausalLM:
        """A randomly initialised decoder for `tokenizer`.

        Raises:
            UserError: sizes that do not go together.
        """
        shape = DecoderShape(
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            kv_heads=self.kv_heads,
            ffn=self.ffn,
            vocabulary=len(tokenizer),
        )
        config = shape.config(
            tie_word_embeddings=True,
            max_position_embeddings=context,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return start_alike(LlamaForCausalLM(config))


@torch.no_grad()
def start_alike(lm: LlamaForCausalLM, *, std: float = 0.06, outward: float = 0.3) -> LlamaForCausalLM:
    """Let tokens look for their like and pass on what they find, from the first step (in place).

    The first query head of each group starts equal to its key head, and each output projection as a fraction of its
    value head's transpose (after "Mimetic initialization", Trockman & Kolter 2023). Copying, which a small decoder
    otherwise finds late, comes in a fraction of the steps.
    """
    for layer in lm.model.layers:
        attention: Any = layer.self_attn
        size, group = attention.head_dim, attention.num_key_value_groups
        attention.q_proj.weight.normal_(std=std)
        attention.v_proj.weight.normal_(std=std)
        q_HKD, k_GKD, v_GKD = (
            p.weight.unflatten(0, (-1, size)) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        k_GKD.copy_(q_HKD[::group])
        attention.o_proj.weight.copy_(outward * v_GKD.repeat_interleave(group, 0).flatten(0, 1).T)
    return lm


@torch.no_grad()
def take_tokenizer(lm: LlamaForCausalLM, known: AnyTokenizer, new: AnyTokenizer) -> None:
    """Go over from one byte-level tokenizer to another (in place): entries of both keep their embeddings, the others
    begin with the mean of the pieces that they were.

    Raises:
        UserError: the output layer has weights of its own, or the tokenizer known does not spell every byte.
    """
    if not lm.config.tie_word_embeddings:
        raise UserError("another tokenizer for a decoder whose output layer is not its embeddings: expected tied ones")
    table_VD = lm.model.embed_tokens.weight.clone()
    split = known.backend_tokenizer.model.tokenize
    names = new.convert_ids_to_tokens(range(len(new)))
    vocabulary = known.get_vocab()
    rows = [[vocabulary[name]] if name in vocabulary else [piece.id for piece in split(name)] for name in names]
    if not all(rows):
        raise UserError("another tokenizer for a decoder whose own is not byte-level BPE: expected one as Graft's")
    lm.resize_token_embeddings(len(new), mean_resizing=False)
    lm.model.embed_tokens.weight.copy_(torch.stack([table_VD[row].mean(0) for row in rows]))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(lm.config, name, getattr(new, name))
        setattr(lm.generation_config, name, getattr(new, name))


class DecoderTask(nn.Module):
    """Next-token prediction on packed rows."""

    def __init__(self, lm: LlamaForCausalLM) -> None:
        super().__init__()
        self.lm = lm

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        return {"decoder": list(self.lm.named_parameters())}

    def loss(self, batch: PackedRows) -> tuple[Tensor, int]:
        """Summed cross-entropy over the counted tokens, and their number."""
        hidden_BTD = self.lm.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask(), position_ids=batch.position
        ).last_hidden_state
        counted_BT = batch.targets != IGNORE
        logits = self.lm.lm_head(hidden_BTD[counted_BT]).float()
        return F.cross_entropy(logits, batch.targets[counted_BT], reduction="sum"), int(counted_BT.sum())


def perplexity(lm: LlamaForCausalLM, tokenizer: AnyTokenizer, chunks: Sequence[str], *, context: int) -> float:
    """Perplexity per token over `chunks`, each cut into windows of `context` tokens that begin with the start token."""
    total, count = 0.0, 0
    for chunk in chunks:
        ids = tokenizer.encode(chunk, add_special_tokens=False)
        for start in range(0, len(ids), context - 1):
            window = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + context - 1]]], device=lm.device)
            logits = lm(input_ids=window).logits[0, :-1].float()
            total += F.cross_entropy(logits, window[0, 1:], reduction="sum").item()
            count += window.shape[1] - 1
    return math.exp(total / count)


def answer_perplexity(lm: LlamaForCausalLM, tokenizer: AnyTokenizer, turns: Sequence[tuple[str, str]]) -> float:
    """Perplexity per token of the answers of one-turn chats, their end of turn included."""
    total, count = 0.0, 0
    for question, answer in turns:
        document = chat_document(tokenizer, question, answer)
        ids_T = torch.tensor(document.ids, device=lm.device)
        counted_T = torch.tensor(document.counts[1:], device=lm.device)
        logits = lm(input_ids=ids_T[None]).logits[0, :-1][counted_T].float()
        total += F.cross_entropy(logits, ids_T[1:][counted_T], reduction="sum").item()
        count += int(counted_T.sum())
    return math.exp(total / count)


def answers(
    lm: LlamaForCausalLM,
    tokenizer: AnyTokenizer,
    questions: Sequence[str | list[int]],
    *,
    max_new_tokens: int = 96,
    batch_size: int = 50,
) -> list[str]:
    """Greedy answers to one-turn chats, in order; questions are text or token ids, as in `chat_document`. Those of
    similar length are answered together."""
    chats = [chat_document(tokenizer, question, []).ids[:-1] for question in questions]
    by_length = sorted(range(len(chats)), key=lambda i: len(chats[i]))
    found = [""] * len(chats)
    for start in range(0, len(chats), batch_size):
        part = by_length[start : start + batch_size]
        inputs = tokenizer.pad({"input_ids": [chats[i] for i in part]}, return_tensors="pt", padding_side="left")
        out = lm.generate(  # pyright: ignore[reportAttributeAccessIssue]
            input_ids=inputs["input_ids"].to(lm.device),
            attention_mask=inputs["attention_mask"].to(lm.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        new = out[:, inputs["input_ids"].shape[1] :]
        for i, text in zip(part, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            found[i] = text.strip()
    return found


def exact_share(predictions: Sequence[str], truths: Sequence[str]) -> float:
    """Share of predictions equal to the truth, letter by letter; not a number when there are none."""
    equal = sum(p == t for p, t in zip(predictions, truths, strict=True))
    return equal / len(truths) if truths else math.nan
