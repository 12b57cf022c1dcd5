"""The conformer block against the one of `transformers` (LASR), and batch statistics without padding."""

from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import LasrEncoderConfig
from transformers.models.lasr.modeling_lasr import LasrEncoderBlock, LasrEncoderRotaryEmbedding

from speech.conformer_block import ConformerBlock, ConvolutionModule
from speech.frames import frame_mask

WIDTH, HEADS, FFN, FRAMES = 48, 6, 96, 20
LENGTHS = torch.tensor([20, 13, 1])


def lasr() -> tuple[LasrEncoderBlock, tuple[Tensor, Tensor]]:
    """A block with the paper's residual weights, every tensor random, and its positions."""
    config = LasrEncoderConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        conv_kernel_size=7,
        attention_bias=True,
        convolution_bias=True,
        feed_forward_residual_weights=[1.0, 0.5],
        conv_residual_weights=[1.0, 1.0],
        layer_norm_eps=1e-5,
    )
    config._attn_implementation = "sdpa"
    block = LasrEncoderBlock(config, 0)
    norm = block.conv.norm
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        for tensor in (*block.parameters(), norm.running_mean):
            tensor.add_(0.2 * torch.randn_like(tensor))
        norm.running_var.uniform_(0.5, 2)
    cos, sin = LasrEncoderRotaryEmbedding(config)(torch.zeros(1), torch.arange(FRAMES)[None])
    return block.eval(), (cos, sin)


def copy_of(theirs: LasrEncoderBlock) -> ConformerBlock:
    block = ConformerBlock(width=WIDTH, heads=HEADS, ffn=FFN, kernel=7, conv_norm="batch", dropout=0.0)
    pairs = {
        block.feed_forward_in[0]: theirs.norm_feed_forward1,
        block.feed_forward_in[1]: theirs.feed_forward1.linear1,
        block.feed_forward_in[3]: theirs.feed_forward1.linear2,
        block.norm_attention: theirs.norm_self_att,
        block.attention.out: theirs.self_attn.o_proj,
        block.convolution.norm_in: theirs.norm_conv,
        block.convolution.pointwise_in: theirs.conv.pointwise_conv1,
        block.convolution.depthwise: theirs.conv.depthwise_conv,
        block.convolution.norm: theirs.conv.norm,
        block.convolution.pointwise_out: theirs.conv.pointwise_conv2,
        block.feed_forward_out[0]: theirs.norm_feed_forward2,
        block.feed_forward_out[1]: theirs.feed_forward2.linear1,
        block.feed_forward_out[3]: theirs.feed_forward2.linear2,
        block.norm_out: theirs.norm_out,
    }
    for ours, other in pairs.items():
        state = {name: tensor.view(ours.state_dict()[name].shape) for name, tensor in other.state_dict().items()}
        missing = ours.load_state_dict(state, strict=False).missing_keys
        assert set(missing) <= ({"bias"} if isinstance(ours, nn.LayerNorm) else set())  # LASR's norms have no bias
    attention = theirs.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    with torch.no_grad():
        block.attention.qkv.weight.copy_(torch.cat([linear.weight for linear in projections]))
        block.attention.qkv.bias.copy_(torch.cat([linear.bias for linear in projections]))
    return block.eval()


@pytest.mark.parametrize("padded", [False, True])
def test_parity_with_lasr_forward_and_gradients(padded: bool) -> None:
    torch.manual_seed(0)
    theirs, positions = lasr()
    ours = copy_of(theirs)
    x = torch.randn(3, FRAMES, WIDTH)
    valid = frame_mask(LENGTHS, FRAMES) if padded else torch.ones(3, FRAMES, dtype=torch.bool)
    square = (valid[:, None, :] & valid[:, :, None])[:, None]
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [
        ours(inputs[0], valid if padded else None),
        theirs(inputs[1], square if padded else None, position_embeddings=positions),
    ]
    torch.testing.assert_close(outputs[0][valid], outputs[1][valid], atol=1e-5, rtol=1e-5)
    weights = torch.randn(int(valid.sum()), WIDTH)
    for output in outputs:
        (output[valid] * weights).sum().backward()
    assert inputs[0].grad is not None and inputs[1].grad is not None
    torch.testing.assert_close(inputs[0].grad[valid], inputs[1].grad[valid], atol=1e-5, rtol=1e-4)
    for ours_module, their_module in (
        (ours.feed_forward_in[1], theirs.feed_forward1.linear1),
        (ours.convolution.depthwise, theirs.conv.depthwise_conv),
        (ours.norm_out, theirs.norm_out),
    ):
        gradients = [cast(Tensor, module.weight.grad) for module in (ours_module, their_module)]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    query_gradient = cast(Tensor, ours.attention.qkv.weight.grad)[:WIDTH]
    torch.testing.assert_close(query_gradient, theirs.self_attn.q_proj.weight.grad, atol=1e-5, rtol=1e-4)


def test_batch_statistics_are_those_of_the_valid_frames() -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(width=8, kernel=3, norm="batch", dropout=0.0)
    seen: list[Tensor] = []
    module.norm.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    x = torch.randn(3, FRAMES, 8)
    valid = frame_mask(LENGTHS, FRAMES)
    noisy = torch.where(valid[..., None], x, 1e3)
    torch.testing.assert_close(module(x, valid)[valid], module(noisy, valid)[valid])
    assert len(seen[0]) == int(LENGTHS.sum())
    expected = 0.1 * seen[0].mean(dim=0)  # the first step, momentum 0.1
    assert isinstance(module.norm, nn.BatchNorm1d)
    torch.testing.assert_close(module.norm.running_mean, 0.9 * expected + expected)  # the second
