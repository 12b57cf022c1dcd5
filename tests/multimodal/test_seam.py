"""The hooks over every family: free layers below, recomputation, one compiled graph, copies with hooks of their own."""

import copy
import io
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError
from tests.multimodal.test_loss import saved_bytes
from tests.multimodal.tiny_decoders import (
    FAMILIES,
    LAYERS,
    VOCAB,
    grafted,
    greedy,
    memory_of,
    prompt,
    tiny_adapter,
    tiny_decoder,
)

families = pytest.mark.parametrize("family", FAMILIES)


# ---- memory for backward ------------------------------------------------------------------------------------------


def layer_inputs(decoder: FrozenDecoder) -> list[bool]:
    """Whether the hidden states going into each layer require grad, in a call with memory (hooks included)."""
    ids, mask = prompt()
    seen: list[bool] = []
    handles = [
        layer.register_forward_hook(lambda _m, args, _o: seen.append(args[0].requires_grad))
        for layer in decoder.seam.layers
    ]
    decoder.hidden(ids, mask, memory=memory_of(decoder, ids))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.filterwarnings("ignore::FutureWarning")
@families
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_below_the_first_adapter_requires_grad(family: str, checkpointing: bool):
    decoder = FrozenDecoder(tiny_decoder(family))
    decoder.attach("image", tiny_adapter((2, 3)))
    decoder.extra_embedding.requires_grad_(False)
    if checkpointing:
        decoder.lm.gradient_checkpointing_enable()  # the trap: this makes the embeddings require grad
        decoder.enable_gradient_checkpointing()
    assert layer_inputs(decoder) == [False, False, True, True]
    decoder.extra_embedding.requires_grad_(True)
    assert layer_inputs(decoder) == [True] * LAYERS


def gradients(decoder: FrozenDecoder) -> dict[str, Tensor]:
    ids, mask = prompt()
    decoder.zero_grad(set_to_none=True)
    decoder.hidden(ids, mask, memory=memory_of(decoder, ids)).square().sum().backward()
    return {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}


@families
@pytest.mark.parametrize("extra", [False, True])
def test_checkpointing_gives_equal_gradients_and_saves_less(family: str, extra: bool):
    decoder = grafted(family)
    decoder.train().extra_embedding.requires_grad_(extra)
    ids, mask = prompt()
    memory = memory_of(decoder, ids)
    plain, stored = gradients(decoder), saved_bytes(lambda: decoder.hidden(ids, mask, memory=memory))
    decoder.enable_gradient_checkpointing()
    again, stored_again = gradients(decoder), saved_bytes(lambda: decoder.hidden(ids, mask, memory=memory))
    assert plain.keys() == again.keys() and len(plain) == len(list(decoder.adapters.parameters())) + extra
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert stored_again < stored / 3
    assert not any(module.training for module in decoder.lm.modules())
    with torch.no_grad():
        out = decoder.generate(ids, mask, memory=memory, max_new_tokens=4, do_sample=False)
    assert torch.equal(out, greedy(decoder, ids, mask, memory, 4))


@families
def test_layers_from_the_first_adapter_up_are_recomputed_and_no_other(family: str):
    decoder = FrozenDecoder(tiny_decoder(family))
    decoder.attach("image", tiny_adapter((2, 3)))
    decoder.extra_embedding.requires_grad_(False)
    decoder.enable_gradient_checkpointing()
    runs: Counter[int] = Counter()
    for number, layer in enumerate(decoder.seam.layers):
        inside = next(layer.children())  # hooks of the layer itself are called outside of what is recomputed
        inside.register_forward_pre_hook(lambda *_, number=number: runs.update([number]))
    gradients(decoder)
    assert [runs[number] for number in range(LAYERS)] == [1, 1, 2, 2]
    decoder.extra_embedding.requires_grad_(True)
    gradients(decoder)
    assert [runs[number] for number in range(LAYERS)] == [3, 3, 4, 4]


def test_checkpointing_survives_memory_that_is_gone_before_backward():
    decoder = grafted()
    decoder.enable_gradient_checkpointing()
    ids, mask = prompt()
    first = decoder.hidden(ids, mask, memory=memory_of(decoder, ids))
    decoder.hidden(ids, mask, memory=memory_of(decoder, ids, seed=4))
    decoder.hidden(ids, mask)
    first.square().sum().backward()
    late = {name: p.grad for name, p in decoder.named_parameters() if p.grad is not None}
    expected = gradients(decoder)
    assert all(torch.equal(late[name], expected[name]) for name in expected)


def test_checkpointing_without_any_adapter_recomputes_nothing():
    decoder = FrozenDecoder(tiny_decoder())
    decoder.enable_gradient_checkpointing()
    assert decoder.first_adapted == LAYERS and not decoder.hidden(torch.ones(1, 3, dtype=torch.long)).requires_grad


# ---- compile, copies, misuse --------------------------------------------------------------------------------------


def shallow(family: str) -> FrozenDecoder:
    """One layer with an adapter: compiling is slow."""
    types: dict[str, Any] = {"layer_types": ["sliding_attention"]} if family.startswith("gemma") else {}
    decoder = FrozenDecoder(tiny_decoder(family, num_hidden_layers=1, **types))
    decoder.attach("image", tiny_adapter((0,)))
    return decoder


@families
@torch.no_grad()
def test_compiles_into_one_graph(family: str):
    torch._dynamo.reset()
    decoder = shallow(family)
    ids, mask = prompt()
    memory = memory_of(decoder, ids)
    compiled = torch.compile(decoder.hidden, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ids, mask, memory=memory), decoder.hidden(ids, mask, memory=memory))
    if family == "llama":
        known = ids.clamp(max=VOCAB - 1)
        assert torch.equal(compiled(known, mask), decoder.hidden(known, mask))


def test_compiled_gradients_with_checkpointing():
    torch._dynamo.reset()
    decoder = shallow("llama")
    expected = gradients(decoder)
    decoder.enable_gradient_checkpointing()
    decoder.hidden = torch.compile(decoder.hidden, backend="aot_eager", fullgraph=True)
    found = gradients(decoder)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


def test_a_deep_copy_uses_its_own_adapters():
    decoder = grafted()
    ids, mask = prompt()
    memory = memory_of(decoder, ids)
    before = decoder.hidden(ids, mask, memory=memory)
    twin = copy.deepcopy(decoder)
    assert torch.equal(twin.hidden(ids, mask, memory=memory), before)
    with torch.no_grad():
        for parameter in twin.adapters.parameters():
            parameter.zero_()
    assert torch.equal(twin.hidden(ids, mask, memory=memory), twin.hidden(ids, mask))
    assert torch.equal(decoder.hidden(ids, mask, memory=memory), before)
    twin.detach("image")
    twin.release()
    assert torch.equal(decoder.hidden(ids, mask, memory=memory), before)
    checkpointed = grafted()
    checkpointed.enable_gradient_checkpointing()
    other = copy.deepcopy(checkpointed)
    assert gradients(other).keys() == gradients(checkpointed).keys()


def test_pickled_as_a_whole():
    decoder = grafted()
    ids, mask = prompt()
    file = io.BytesIO()
    torch.save(decoder, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    memory = memory_of(decoder, ids)
    assert torch.equal(again.hidden(ids, mask, memory=memory), decoder.hidden(ids, mask, memory=memory))


def test_one_decoder_has_one_owner_until_it_is_released():
    decoder = grafted()
    with pytest.raises(UserError, match="release"):
        FrozenDecoder(decoder.lm)
    lm = decoder.release()
    assert not any(layer._forward_pre_hooks for layer in decoder.seam.layers)
    FrozenDecoder(lm)
