"""The speech adapter: encoder features become vectors in the decoder's embedding space (Llama 3 paper, section 8.2 /
spec B3).

A convolution halves the rate (the conformer's 40 ms to 80 ms, Whisper's 20 ms to 40 ms), one rotary transformer layer
looks over the whole utterance, a linear layer leads to the decoder's width. The result is as loud as the decoder's own
embeddings from the first step on.

Legend: B utterances, T encoder frames, E embeddings (half as many), C encoder width, W adapter width, D decoder width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multimodal.errors import UserError
from multimodal.rotary import RotarySelfAttention
from speech.conformer_block import FeedForward
from speech.frames import Length, ceil_divide, padding_mask, trim

STRIDE = 2


@dataclass(frozen=True, kw_only=True)
class SpeechAdapterConfig:
    """Sizes. The paper's adapter has width 3072 and ffn 4096: 90M parameters at 8B, 102M at 70B (spec B3)."""

    width: int = 256
    heads: int = 4
    ffn: int = 512
    """Hidden width of the feed-forward."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "heads", "ffn"):
            if getattr(self, name) < 1:
                raise UserError(f"speech adapter: {name} {getattr(self, name)}, expected 1 or more")
        if self.width % (2 * self.heads):
            raise UserError(f"speech adapter: width {self.width} does not divide into {self.heads} heads of even width")
        if not 0 <= self.dropout < 1:
            raise UserError(f"speech adapter: dropout {self.dropout}, expected 0 <= dropout < 1")


@torch.no_grad()
def embedding_rms(embedding: nn.Embedding) -> float:
    """Root mean square of a decoder's token embeddings, as its embedding layer gives them (some families scale)."""
    ids = torch.arange(embedding.num_embeddings, device=embedding.weight.device)
    squares = [embedding(some).double().square().mean(dim=1).sum() for some in ids.split(4096)]
    return (torch.stack(squares).sum() / len(ids)).sqrt().item()


class SpeechAdapter(nn.Module):
    """Convolution, rotary transformer layer, linear (Llama 3 paper, section 8.2 / spec B3).

    Args:
        config: sizes.
        feature_dim: C.
        decoder_dim: D.
        embedding_rms: of the decoder's embeddings. It is saved with the weights, and those that are loaded win.
    """

    def __init__(
        self, config: SpeechAdapterConfig, *, feature_dim: int, decoder_dim: int, embedding_rms: float
    ) -> None:
        super().__init__()
        self.config = config
        self.convolution = nn.Conv1d(feature_dim, config.width, kernel_size=3, stride=STRIDE, padding=1)
        self.norm_attention = nn.LayerNorm(config.width)
        self.attention = RotarySelfAttention(width=config.width, heads=config.heads)
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward = FeedForward(width=config.width, hidden=config.ffn, dropout=config.dropout)
        self.linear = nn.Linear(config.width, decoder_dim)
        self.norm_out = nn.RMSNorm(decoder_dim, eps=1e-6)
        self.embedding_rms: Tensor
        self.register_buffer("embedding_rms", torch.tensor(embedding_rms))

    def output_length(self, length: Length) -> Length:
        """Embeddings (positions in the decoder) of so many encoder frames; a tensor for a tensor."""
        return ceil_divide(length, STRIDE)

    def forward(self, features_BTC: Tensor, lengths_B: Tensor) -> Tensor:
        """Embeddings [B, E, D] in fp32, E being `output_length` of the longest utterance.

        Args:
            features_BTC: encoder features; any values may stand behind an utterance.
            lengths_B: int64, encoder frames of each utterance.

        Raises:
            ValueError: a length below 1 or beyond the features.
        """
        x_BTC = trim(features_BTC, lengths_B)
        x_BEW = self.convolution(x_BTC.transpose(1, 2)).transpose(1, 2)
        valid_BE = padding_mask(self.output_length(lengths_B), x_BEW.shape[1])
        x_BEW = x_BEW + self.dropout(self.attention(self.norm_attention(x_BEW), valid_BE))
        x_BEW = x_BEW + self.feed_forward(x_BEW)
        # The norm's weight learns around 1: around the embeddings' few hundredths a step would be a large one.
        norm = self.norm_out  # its weight may be kept in bf16
        x_BED = F.rms_norm(self.linear(x_BEW).float(), norm.normalized_shape, norm.weight.float(), norm.eps)
        return x_BED * self.embedding_rms
