"""The sizes of a Llama decoder that is made from nothing, and the configuration of `transformers` that they give."""

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig

from multimodal.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a Llama decoder (Llama 3 paper, table 3 / spec 0.2). The defaults are those of 8B."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    ffn: int = 14336
    vocabulary: int = 128256

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "kv_heads", "ffn", "vocabulary"):
            if getattr(self, name) < 1:
                raise UserError(f"decoder: {name} {getattr(self, name)}, expected 1 or more")
        if self.width % self.heads or self.heads % self.kv_heads:
            raise UserError(
                f"decoder: width {self.width}, {self.heads} heads, {self.kv_heads} key/value heads; expected each to "
                "be a multiple of the next"
            )

    def config(self, *, tie_word_embeddings: bool = False, **settings: Any) -> LlamaConfig:
        """For `transformers`, with settings of its own that are no sizes."""
        return LlamaConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.ffn,
            vocab_size=self.vocabulary,
            tie_word_embeddings=tie_word_embeddings,
            **settings,
        )
