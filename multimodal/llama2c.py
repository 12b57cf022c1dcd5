"""llama2.c's files (version 0) as a decoder of `transformers`.

A checkpoint is seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative vocab_size
means an output of its own) and then fp32 tensors, each stacked over the layers. A tokenizer is the length of its
longest token as int32, then for each token a float32 score, an int32 length, and its bytes. All is little endian.

Legend: V vocabulary, D width, F width of the feed-forward, L layers, H heads, G key/value heads, K head size.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights

from multimodal.errors import UserError
from multimodal.files import new_folder, open_file
from multimodal.pretrained import write_decoder
from multimodal.tokenizer import AnyTokenizer

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_FIRST_PIECE = 3 + len(BYTES)
_HEADER = struct.Struct("<7i")
_LATER_MAGIC = 0x616B3432
"""What files of version 1 and later begin with."""


@dataclass(frozen=True)
class Shape:
    """A checkpoint's header."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    tied: bool

    @property
    def plausible(self) -> bool:
        sizes = (self.dim, self.hidden_dim, self.n_layers, self.n_heads, self.n_kv_heads, self.vocab_size, self.seq_len)
        if min(sizes) < 1 or self.dim % self.n_heads or self.n_heads % self.n_kv_heads:
            return False
        return (self.dim // self.n_heads) % 2 == 0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name in `transformers` ("" = not needed) and shape of each tensor, in the file's order. A name with {} has a
        first dimension of layers."""
        d, f, layer = self.dim, self.hidden_dim, "model.layers.{}."
        kv = self.n_kv_heads * self.head_dim
        rotations = (self.seq_len, self.head_dim // 2)
        return [
            ("model.embed_tokens.weight", (self.vocab_size, d)),
            (layer + "input_layernorm.weight", (self.n_layers, d)),
            (layer + "self_attn.q_proj.weight", (self.n_layers, d, d)),
            (layer + "self_attn.k_proj.weight", (self.n_layers, kv, d)),
            (layer + "self_attn.v_proj.weight", (self.n_layers, kv, d)),
            (layer + "self_attn.o_proj.weight", (self.n_layers, d, d)),
            (layer + "post_attention_layernorm.weight", (self.n_layers, d)),
            (layer + "mlp.gate_proj.weight", (self.n_layers, f, d)),
            (layer + "mlp.down_proj.weight", (self.n_layers, d, f)),
            (layer + "mlp.up_proj.weight", (self.n_layers, f, d)),
            ("model.norm.weight", (d,)),
            ("", rotations),
            ("", rotations),
            *([] if self.tied else [("lm_head.weight", (self.vocab_size, d))]),
        ]

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.dim,
            intermediate_size=self.hidden_dim,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_kv_heads,
            max_position_embeddings=self.seq_len,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=self.tied,
            bos_token_id=1,
            eos_token_id=2,
        )


def read_checkpoint(path: Path) -> LlamaForCausalLM:
    """The decoder of a checkpoint, in fp32.

    Raises:
        UserError: not such a file, or one that is longer or shorter than its header says.
    """
    with open_file(path, expected="expected a llama2.c checkpoint") as file:
        shape = _read_shape(file, path)
        weights = dict(_read_tensors(file, shape, path))
    if shape.tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    with no_init_weights():  # every value comes from the file
        lm = LlamaForCausalLM(shape.config())
    lm.load_state_dict(weights, assign=True)
    lm.tie_weights()
    # What separates the stories it was trained on is the begin token; the end token was never shown.
    lm.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 1])
    return lm.eval()


def _read_shape(file: BinaryIO, path: Path) -> Shape:
    size = os.fstat(file.fileno()).st_size
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise UserError(
            f"{path}: {size} bytes long; expected a llama2.c checkpoint, which begins with 28 bytes of sizes"
        )
    numbers = _HEADER.unpack(header)
    if numbers[0] == _LATER_MAGIC:
        raise UserError(f"{path}: a llama2.c checkpoint of version {numbers[1]}; expected version 0")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = numbers
    shape = Shape(dim, hidden_dim, n_layers, n_heads, n_kv_heads, abs(vocab_size), seq_len, tied=vocab_size > 0)
    if not shape.plausible:
        raise UserError(
            f"{path}: begins with {', '.join(map(str, numbers))}; expected the sizes of a llama2.c checkpoint"
        )
    expected = _HEADER.size + 4 * sum(prod(dims) for _, dims in shape.tensors())
    if size != expected:
        raise UserError(
            f"{path}: {size:,} bytes long; expected {expected:,} for its {shape.n_layers} layers of width {shape.dim} "
            f"and {shape.vocab_size} tokens"
        )
    return shape


def _read_tensors(file: BinaryIO, shape: Shape, path: Path) -> Iterator[tuple[str, Tensor]]:
    for name, dims in shape.tensors():
        values = np.fromfile(file, dtype="<f4", count=prod(dims)).astype(np.float32, copy=False)
        tensor = torch.from_numpy(values).view(dims)
        if not tensor.isfinite().all():
            raise UserError(
                f"{path}: {name or 'a table of rotations'} has values that are not finite; expected weights"
            )
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _halves(tensor, shape.head_dim)
        if "{}" in name:
            yield from ((name.format(layer), part.clone()) for layer, part in enumerate(tensor))
        elif name:
            yield name, tensor


def _halves(weight_LOD: Tensor, head_dim: int) -> Tensor:
    """Rows of a projection in the order of `transformers`: RoPE turns rows 2i and 2i+1 of a head together in llama2.c,
    rows i and i + K/2 here."""
    pairs = weight_LOD.unflatten(1, (-1, head_dim // 2, 2))
    return pairs.transpose(2, 3).flatten(1, 3)


def read_tokenizer(path: Path, *, vocab_size: int, context: int) -> AnyTokenizer:
    """A fast tokenizer that encodes as llama2.c does: a space before the text, the best-scoring pair merged first,
    bytes for characters that are no token. It has no chat template.

    Raises:
        UserError: not such a file, a truncated one, or one of another vocabulary.
    """
    with open_file(path, expected="expected a llama2.c tokenizer") as file:
        scored = list(_read_tokens(file.read(), path))
    if len(scored) != vocab_size:
        raise UserError(f"{path}: {len(scored)} tokens; expected {vocab_size} as in the checkpoint")
    tokens = [token for token, _ in scored]
    if tuple(token.strip() for token in tokens[:3]) != (UNKNOWN, BEGIN, END) or tuple(tokens[3:_FIRST_PIECE]) != BYTES:
        raise UserError(
            f"{path}: expected the tokens {UNKNOWN}, {BEGIN}, {END} and 256 bytes first, as llama2.c has them"
        )
    tokens[:3] = UNKNOWN, BEGIN, END
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise UserError(f"{path}: the token {twice!r} is there twice; expected each once")
    merges = _merges(dict(scored[_FIRST_PIECE:]))
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, byte_fallback=True))
    bpe.normalizer = normalizers.Prepend(" ")
    bpe.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bpe.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _read_tokens(data: bytes, path: Path) -> Iterator[tuple[str, float]]:
    """Token and score, in order."""
    at, number = 4, 0  # the longest length comes first and is not needed
    while at < len(data):
        end = at + 8
        if end <= len(data):
            score, length = struct.unpack_from("<fi", data, at)
            end += length
            if length < 1 or not np.isfinite(score):
                raise UserError(
                    f"{path}: token {number} has length {length} and score {score}; expected a llama2.c tokenizer"
                )
        if end > len(data):
            raise UserError(f"{path}: ends within token {number}; expected a whole llama2.c tokenizer")
        try:
            yield data[at + 8 : end].decode(), score
        except UnicodeDecodeError:
            raise UserError(f"{path}: token {number} is not text; expected a llama2.c tokenizer") from None
        at, number = end, number + 1


def _merges(pieces: dict[str, float]) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, the best-scoring first: llama2.c knows pieces, BPE here knows pairs."""
    pairs = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: -pieces[piece])
        for cut in range(1, len(piece))
    ]
    return [(left, right) for left, right in pairs if left in pieces and right in pieces]


def convert(checkpoint: Path, tokenizer: Path, out: Path) -> LlamaForCausalLM:
    """Write a checkpoint and its tokenizer as a folder of `transformers`, whole or not at all, and return the decoder.

    Raises:
        UserError: as `read_checkpoint`, `read_tokenizer` and `new_folder`.
    """
    with new_folder(out) as draft:
        lm = read_checkpoint(checkpoint)
        fast = read_tokenizer(tokenizer, vocab_size=lm.config.vocab_size, context=lm.config.max_position_embeddings)
        write_decoder(lm, fast, draft)
    return lm
