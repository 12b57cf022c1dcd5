"""The speech encoder: a stack of conformer blocks over log-mel features (Llama 3 paper, section 8.2 / spec B2).

Four 10 ms frames become one of 40 ms. Padding is seen by nobody: an utterance gives the same features alone and in any
batch. Where all utterances are equally long no mask is made, and where much would be padding they go end to end.

Legend: B utterances, M mel frames (10 ms), T frames (40 ms), N frames of all utterances, F mel bands, S stacked bands,
D width.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multimodal.errors import UserError
from multimodal.layers import Encoder
from speech.conformer_block import ConformerBlock, ConvNorm
from speech.frames import Length, ceil_divide, padding_mask, stack_frames, trim

WORTHWHILE = 0.125
"""Share of padding from which on utterances go end to end: attention then runs for each by itself."""


@dataclass(frozen=True, kw_only=True)
class ConformerConfig:
    """Shape of a conformer. The paper's has width 1536, 24 layers, 24 heads, ffn 4096: 1.0B parameters (spec B2)."""

    mels: int = 80
    """Mel bands of a 10 ms frame."""
    stack: int = 4
    """Mel frames that become one frame of the encoder."""
    width: int = 144
    layers: int = 6
    heads: int = 4
    ffn: int = 576
    """Hidden width of the feed-forwards."""
    kernel: int = 7
    """Frames that a convolution spans."""
    conv_norm: ConvNorm = "layer"
    """batch: for imported weights only. Its running statistics are no part of a training checkpoint."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("mels", "stack", "width", "layers", "heads", "ffn", "kernel"):
            if getattr(self, name) < 1:
                raise UserError(f"conformer: {name} {getattr(self, name)}, expected 1 or more")
        wrong = {
            f"width {self.width} does not divide into {self.heads} heads of even width": self.width % (2 * self.heads),
            f"kernel {self.kernel}, expected an odd number": self.kernel % 2 == 0,
            f"conv_norm {self.conv_norm!r}, expected 'layer' or 'batch'": self.conv_norm not in ("layer", "batch"),
            f"dropout {self.dropout}, expected 0 <= dropout < 1": not 0 <= self.dropout < 1,
        }
        for what, holds in wrong.items():
            if holds:
                raise UserError(f"conformer: {what}")


class Conformer(Encoder):
    """Conformer encoder (Llama 3 paper, section 8.2 / spec B2).

    Example:
        encoder = Conformer(ConformerConfig())
        features = encoder(batch.padded, batch.lengths)       # [B, T, encoder.feature_dim], 40 ms frames
        lengths = encoder.output_length(batch.lengths)
    """

    end_to_end = True
    """How the layers may take the utterances of a batch; see `multimodal.train.compiled`."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.input = nn.Linear(config.stack * config.mels, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            ConformerBlock(
                width=config.width,
                heads=config.heads,
                ffn=config.ffn,
                kernel=config.kernel,
                conv_norm=config.conv_norm,
                dropout=config.dropout,
            )
            for _ in range(config.layers)
        )

    @property
    def feature_dim(self) -> int:
        """D: width of the features."""
        return self.config.width

    @property
    def stride(self) -> int:
        """Mel frames of a frame."""
        return self.config.stack

    def output_length(self, length: Length) -> Length:
        """Frames (40 ms) of so many mel frames; a tensor for a tensor."""
        return ceil_divide(length, self.config.stack)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.gradient_checkpointing = True

    def forward(self, features_BMF: Tensor, lengths_B: Tensor) -> Tensor:
        """Features [B, T, D] of normalised log-mel features, T being `output_length` of the longest utterance.

        Args:
            features_BMF: any values may stand behind an utterance.
            lengths_B: int64, mel frames of each utterance.

        Raises:
            UserError: another number of mel bands.
            ValueError: a length below 1 or beyond the features.
        """
        if features_BMF.shape[-1] != self.config.mels:
            raise UserError(f"conformer: found {features_BMF.shape[-1]} mel bands, expected {self.config.mels}")
        stacked_BTS = stack_frames(trim(features_BMF, lengths_B), self.config.stack)
        valid_BT = padding_mask(self.output_length(lengths_B), stacked_BTS.shape[1])
        if valid_BT is None:
            return self._run(stacked_BTS, None, None)
        lengths = tuple(self.output_length(lengths_B).tolist())
        if sum(lengths) > valid_BT.numel() * (1 - WORTHWHILE):
            return self._run(stacked_BTS, valid_BT, None)
        x_1ND = self._run(stacked_BTS[valid_BT][None], None, lengths)
        return x_1ND.new_zeros(*valid_BT.shape, x_1ND.shape[-1]).index_put((valid_BT,), x_1ND[0])

    def _run(self, stacked_BTS: Tensor, valid_BT: Tensor | None, lengths: tuple[int, ...] | None) -> Tensor:
        """Stacked frames through all blocks; arguments as theirs."""
        x_BTD = self.dropout(self.input(stacked_BTS))
        for block in self.layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                contexts = partial(_statistics_once, block)
                again = checkpoint(block, x_BTD, valid_BT, lengths, use_reentrant=False, context_fn=contexts)
                x_BTD = cast(Tensor, again)
            else:
                x_BTD = block(x_BTD, valid_BT, lengths)
        return x_BTD


def _statistics_once(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of a block's forward pass and of its recomputation, which must not move running statistics again."""
    return nullcontext(), _still_statistics(block)


@contextmanager
def _still_statistics(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm1d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
