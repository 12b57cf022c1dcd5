"""Conformers of others, at our conformer's size and behind its input layer: LASR with our weights, the rest with their
own, because their functions differ by design.
"""

from collections.abc import Callable
from typing import Any

import torch
import torchaudio
from torch import Tensor, nn
from transformers import LasrEncoderConfig, Wav2Vec2ConformerConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.lasr.modeling_lasr import LasrEncoderBlock, LasrEncoderRotaryEmbedding
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoder

from speech.conformer import Conformer
from speech.frames import ceil_divide, frame_mask, stack_frames


class Behind(nn.Module):
    """Another's stack of blocks behind a copy of our input layer: same arguments, same shapes."""

    def __init__(self, ours: Conformer, stack: nn.Module) -> None:
        super().__init__()
        self.stacked = ours.config.stack
        self.input = nn.Linear(ours.input.in_features, ours.input.out_features)
        self.input.load_state_dict(ours.input.state_dict())
        self.stack = stack

    def forward(self, features_BMF: Tensor, lengths_B: Tensor) -> Tensor:
        x_BTD = self.input(stack_frames(features_BMF, self.stacked))
        return self.stack(x_BTD, ceil_divide(lengths_B, self.stacked))


class Lasr(nn.Module):
    """The blocks of LASR (rotary attention as ours), masked as its encoder does."""

    def __init__(self, ours: Conformer) -> None:
        super().__init__()
        shape = ours.config
        self.config = LasrEncoderConfig(
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.ffn,
            conv_kernel_size=shape.kernel,
            attention_bias=True,
            convolution_bias=True,
            feed_forward_residual_weights=[1.0, 0.5],
            conv_residual_weights=[1.0, 1.0],
            layer_norm_eps=1e-5,
        )
        self.config._attn_implementation = "sdpa"
        self.rotary = LasrEncoderRotaryEmbedding(self.config)
        self.layers = nn.ModuleList(LasrEncoderBlock(self.config, number) for number in range(shape.layers))

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        valid_BT = frame_mask(lengths_B, x_BTD.shape[1])
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=x_BTD, attention_mask=valid_BT)
        positions = self.rotary(x_BTD, torch.arange(x_BTD.shape[1], device=x_BTD.device)[None])
        for layer in self.layers:
            x_BTD = layer(x_BTD, attention_mask=mask, position_embeddings=positions)
        return x_BTD


@torch.no_grad()
def lasr_with_weights_of(ours: Conformer) -> Behind:
    """LASR with our weights. Ours must have batch norm, and its other norms no bias but 0, for LASR's have none."""
    stack = Lasr(ours)
    for block, theirs in zip(ours.layers, stack.layers, strict=True):
        _copy_block(block, theirs)
    return Behind(ours, stack)


def _copy_block(ours: Any, theirs: Any) -> None:
    pairs = {
        theirs.norm_feed_forward1: ours.feed_forward_in[0],
        theirs.feed_forward1.linear1: ours.feed_forward_in[1],
        theirs.feed_forward1.linear2: ours.feed_forward_in[3],
        theirs.norm_self_att: ours.norm_attention,
        theirs.self_attn.o_proj: ours.attention.out,
        theirs.norm_conv: ours.convolution.norm_in,
        theirs.conv.pointwise_conv1: ours.convolution.pointwise_in,
        theirs.conv.depthwise_conv: ours.convolution.depthwise,
        theirs.conv.norm: ours.convolution.norm,
        theirs.conv.pointwise_conv2: ours.convolution.pointwise_out,
        theirs.norm_feed_forward2: ours.feed_forward_out[0],
        theirs.feed_forward2.linear1: ours.feed_forward_out[1],
        theirs.feed_forward2.linear2: ours.feed_forward_out[3],
        theirs.norm_out: ours.norm_out,
    }
    for target, source in pairs.items():
        values = source.state_dict()
        target.load_state_dict({name: values[name].view(old.shape) for name, old in target.state_dict().items()})
    attention = theirs.self_attn
    for part, linear in enumerate((attention.q_proj, attention.k_proj, attention.v_proj)):
        linear.weight.copy_(ours.attention.qkv.weight.chunk(3)[part])
        linear.bias.copy_(ours.attention.qkv.bias.chunk(3)[part])


class Wav2Vec2(nn.Module):
    """The conformer encoder of wav2vec 2.0 in `transformers`, with rotary positions."""

    def __init__(self, ours: Conformer) -> None:
        super().__init__()
        shape = ours.config
        config = Wav2Vec2ConformerConfig(
            hidden_size=shape.width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            intermediate_size=shape.ffn,
            conv_depthwise_kernel_size=shape.kernel,
            position_embeddings_type="rotary",
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            conformer_conv_dropout=0.0,
            layerdrop=0.0,
        )
        config._attn_implementation = "sdpa"
        self.encoder = Wav2Vec2ConformerEncoder(config)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        # It writes zeros into its input.
        return self.encoder(x_BTD.clone(), attention_mask=frame_mask(lengths_B, x_BTD.shape[1])).last_hidden_state


class Torchaudio(nn.Module):
    """`torchaudio.models.Conformer`, which knows no positions."""

    def __init__(self, ours: Conformer) -> None:
        super().__init__()
        shape = ours.config
        self.encoder = torchaudio.models.Conformer(shape.width, shape.heads, shape.ffn, shape.layers, shape.kernel)

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        return self.encoder(x_BTD, lengths_B)[0]


PEERS: dict[str, tuple[Callable[[Conformer], Behind], str]] = {
    "transformers LASR": (lasr_with_weights_of, ""),
    "transformers Wav2Vec2Conformer": (
        lambda ours: Behind(ours, Wav2Vec2(ours)),
        "size-equal only: it rotates before the projections and lets padding into convolutions",
    ),
    "torchaudio Conformer": (
        lambda ours: Behind(ours, Torchaudio(ours)),
        "size-equal only: it has no positions and lets padding into convolutions",
    ),
}
"""Name -> how to build it, and how its function differs from ours (empty: it does not)."""
