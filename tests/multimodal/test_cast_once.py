"""Weights that are cast once change no result, and nothing of it is left behind."""

import pytest
import torch
from torch import nn

from multimodal.cast_once import CastOnce
from multimodal.decoder import FrozenDecoder
from tests.multimodal.tiny_decoders import tiny_decoder


def bf16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4, bias=False)).requires_grad_(False)


def test_outputs_and_gradients_are_the_same_to_the_bit() -> None:
    net, x = network(), torch.randn(5, 8, requires_grad=True)
    once = CastOnce(net)
    found = []
    for cast in (False, True):
        with bf16():
            if cast:
                with once():
                    out = net(x)
            else:
                out = net(x)
        (grad,) = torch.autograd.grad(out.float().square().sum(), x)
        found.append((out, grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_copies_are_made_once_and_put_away() -> None:
    net = network()
    before, once = dict(net.named_parameters()), CastOnce(net)
    copies = []
    for _ in range(2):
        with bf16(), once():
            copies.append(net[0].weight)
            assert net[0].weight.dtype == torch.bfloat16 and not net[0].weight.requires_grad
        assert all(net.get_parameter(name) is parameter for name, parameter in before.items())
    assert copies[0] is copies[1]
    with torch.no_grad():
        net[0].weight.add_(1.0)
    with bf16(), once():
        assert torch.equal(net[0].weight, before["0.weight"].bfloat16()) and net[0].weight is not copies[0]


def test_weights_come_back_after_an_error() -> None:
    net = network()
    weight, once = net[0].weight, CastOnce(net)
    with pytest.raises(KeyError), bf16(), once():
        raise KeyError
    assert net[0].weight is weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_happens_without_autocast_or_to_weights_that_are_not_fp32(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    weight, once = net[0].weight, CastOnce(net)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32), once():
        assert net[0].weight is weight


def test_a_frozen_decoder_says_the_same_as_the_bare_one() -> None:
    ids = torch.randint(5, 40, (2, 6))
    lm = tiny_decoder("llama")
    with torch.no_grad(), bf16():
        logits, said = lm(input_ids=ids).logits, lm.generate(ids, max_new_tokens=6, do_sample=False)
        decoder = FrozenDecoder(lm)
        assert torch.equal(decoder(ids), logits)
        assert torch.equal(decoder.generate(ids, max_new_tokens=6, do_sample=False), said[:, 6:])
    assert {p.dtype for p in lm.parameters()} == {torch.float32}
