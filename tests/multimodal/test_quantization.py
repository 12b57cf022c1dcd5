"""A decoder in 8 bits is frozen as any other: same logits to the bit, same hash, no copy of a weight for backward."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError
from multimodal.hashing import weights_sha256
from multimodal.model import MultimodalModel
from multimodal.pretrained import load_decoder
from multimodal.quantization import QuantizedLinear, quantization_of, quantize_decoder
from tests.multimodal.test_decoder import train_steps
from tests.multimodal.tiny_decoders import VOCAB, memory_of, prompt, tiny_adapter, tiny_decoder
from tests.tiny_models import CONFIG, ask, open_gates, picture

CPU = torch.device("cpu")
kinds = pytest.mark.parametrize("kind", ["int8", "fp8"])


def quantized(kind: str, family: str = "llama", **overrides: Any) -> Any:
    lm = tiny_decoder(family, **overrides)
    quantize_decoder(lm, kind)
    return lm


@kinds
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi3"])  # without and with biases; fused projections
def test_text_only_is_the_bare_quantized_decoder_to_the_bit(family: str, kind: str) -> None:
    bare, decoder = quantized(kind, family), FrozenDecoder(quantized(kind, family))
    decoder.attach("image", tiny_adapter())
    ids, mask = prompt()
    known = ids.clamp(max=VOCAB - 1)
    expected, sha256 = bare(known, attention_mask=mask).logits, decoder.sha256()
    assert torch.equal(decoder(known, mask), expected)
    assert train_steps(decoder.train(), 2)[1] == {name for name, _ in decoder.adapters.named_parameters()}
    assert torch.equal(decoder(known, mask), expected) and decoder.sha256() == sha256 == weights_sha256(bare)
    with torch.no_grad():
        out = decoder.generate(known, mask, max_new_tokens=3, do_sample=False)
        assert torch.equal(out, bare.generate(known, attention_mask=mask, max_new_tokens=3, do_sample=False)[:, 8:])
        full = tiny_decoder(family)(known, attention_mask=mask).logits
        seen = (decoder.hidden(ids, mask, memory=memory_of(decoder, ids)) - decoder.hidden(ids, mask)).abs().amax(-1)
    assert 0 < (expected - full).abs().mean() < 0.3 * full.std()
    assert seen[0, 3:].min() > 1e-3 and not seen[1].any() and not seen[0, :3].any()


@kinds
def test_linear_layers_shrink_and_nothing_else_is_touched(kind: str) -> None:
    plain, small = tiny_decoder(), quantized(kind)
    assert quantization_of(small) == kind and quantization_of(plain) == "none"
    for name, module in plain.named_modules():
        twin: Any = small.get_submodule(name)
        if isinstance(module, nn.Linear) and name != "lm_head":
            assert isinstance(twin, QuantizedLinear) and not twin.weight.requires_grad
            parts, _ = twin.weight.__tensor_flatten__()
            stored = sum(getattr(twin.weight, part).nbytes for part in parts)
            assert stored <= module.weight.numel() + 8 * len(module.weight)
        else:
            assert type(twin) is type(module)
            assert all(torch.equal(p, q) for p, q in zip(module.parameters(False), twin.parameters(False), strict=True))
    assert small.lm_head.weight is small.model.embed_tokens.weight


@kinds
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_the_expanded_weight_which_is_not_kept(kind: str, autocast: bool) -> None:
    layer: Any = quantized(kind, "qwen2").model.layers[0].self_attn.q_proj  # with a bias
    x = torch.randn(2, 5, layer.in_features, requires_grad=True)
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = layer(x)
        expected = torch.nn.functional.linear(x, layer.weight.dequantize(), layer.bias)
    assert out.dtype == expected.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert not any(tensor.numel() >= layer.weight.numel() for tensor in saved)
    found, wanted = (torch.autograd.grad(y.float().square().sum(), x)[0] for y in (out, expected))
    tolerance = 0.05 if autocast else 1e-5
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found, wanted, atol=10 * tolerance, rtol=tolerance)


@kinds
def test_checkpointing_gives_equal_gradients(kind: str) -> None:
    decoder = FrozenDecoder(quantized(kind))
    decoder.attach("image", tiny_adapter())
    ids, mask = prompt()
    found = []
    for _ in range(2):
        decoder.zero_grad()
        decoder.hidden(ids, mask, memory=memory_of(decoder, ids)).square().sum().backward()
        found.append([p.grad.clone() for p in decoder.adapters.parameters() if p.grad is not None])
        decoder.enable_gradient_checkpointing()
    assert found[0] and all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@kinds
def test_the_hash_covers_every_part_of_a_quantized_weight(kind: str) -> None:
    lm = quantized(kind)
    first = weights_sha256(lm)
    assert first == weights_sha256(quantized(kind)) != weights_sha256(tiny_decoder())
    weight: Any = lm.model.layers[2].mlp.up_proj.weight
    hashes = {first}
    with torch.no_grad():
        weight.qdata.view(torch.uint8)[0, 0] ^= 1
        hashes.add(weights_sha256(lm))
        weight.scale.view(-1)[3] *= 2
        hashes.add(weights_sha256(lm))
    assert len(hashes) == 3


# ---- adapters -----------------------------------------------------------------------------------------------------


def test_an_adapter_comes_back_on_the_quantized_decoder_and_on_no_other(decoder_folder: Path, tmp_path: Path) -> None:
    name = str(decoder_folder)
    decoder, tokenizer = load_decoder(name, dtype=torch.float32, device=CPU, quantization="int8")
    model = MultimodalModel(decoder, tokenizer, decoder_name=name)
    model.add("image", CONFIG)
    open_gates(model.modalities)
    model.eval().save_pretrained(tmp_path / "a")
    assert "in int8" in (tmp_path / "a" / "README.md").read_text()
    again = MultimodalModel.from_pretrained(tmp_path / "a", device="cpu")
    assert quantization_of(again.decoder.lm) == "int8" and again.decoder.sha256() == decoder.sha256()
    with torch.no_grad():
        batch = model.collate([model.sample(ask(picture(), "Who?"), "A fox.")])
        logits = [m.decoder(batch.input_ids, memory=m.memory(batch)) for m in (model, again)]
    assert torch.equal(*logits)
    full, _ = load_decoder(name, dtype=torch.float32, device=CPU)
    other = MultimodalModel(full, tokenizer, decoder_name=name)
    with pytest.raises(UserError, match=r"was trained on decoder .* in int8 .*expected the same weights"):
        other.load_adapter(tmp_path / "a")
    other.load_adapter(tmp_path / "a", force_decoder=True)


# ---- refused ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'int3'; expected none, int8, fp8"):
        quantize_decoder(tiny_decoder(), "int3")
    with pytest.raises(UserError, match="most of its weights outside of linear layers"):
        quantize_decoder(tiny_decoder("mixtral"), "int8")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    untouched = tiny_decoder()
    quantize_decoder(untouched, "none")
    with pytest.raises(UserError, match=r"--decoder.quantize fp8 needs .*graft-multimodal\[quantize\]") as caught:
        quantize_decoder(untouched, "fp8")
    assert "\n" not in str(caught.value) and quantization_of(untouched) == "none"
