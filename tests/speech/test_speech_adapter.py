"""The speech adapter: alone as in a batch, as loud as the decoder's embeddings, the paper's size."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma3TextConfig, Gemma3TextModel

from multimodal.errors import UserError
from speech.frames import pad_batch
from speech.speech_adapter import SpeechAdapter, SpeechAdapterConfig, embedding_rms

LENGTHS = (9, 4, 1, 12, 7)


def build(*, rms: float = 0.05, **changes: Any) -> SpeechAdapter:
    torch.manual_seed(0)
    config = SpeechAdapterConfig(**({"width": 32, "heads": 4, "ffn": 48} | changes))
    return SpeechAdapter(config, feature_dim=24, decoder_dim=40, embedding_rms=rms)


def features(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 24, generator=generator) for length in lengths]


def gradients(adapter: SpeechAdapter) -> dict[str, Tensor]:
    found = {
        name: parameter.grad.clone() for name, parameter in adapter.named_parameters() if parameter.grad is not None
    }
    adapter.zero_grad(set_to_none=True)
    return found


def test_ragged_batch_equals_each_utterance_alone_also_in_gradients() -> None:
    adapter, batch = build(), pad_batch(features())
    spoiled = torch.full((5, 15, 24), torch.nan)
    for row, utterance in zip(spoiled, features(), strict=True):
        row[: len(utterance)] = utterance
    together = adapter(spoiled, batch.lengths)
    lengths = adapter.output_length(batch.lengths).tolist()
    assert lengths == [adapter.output_length(n) for n in LENGTHS] == [(n - 1) // 2 + 1 for n in LENGTHS]
    assert together.shape == (5, 6, 40)
    weights = torch.randn(together.shape)
    torch.stack([(together[i, :n] * weights[i, :n]).sum() for i, n in enumerate(lengths)]).sum().backward()
    ragged = gradients(adapter)
    for i, utterance in enumerate(features()):
        alone = adapter(utterance[None], torch.tensor([len(utterance)]))
        torch.testing.assert_close(together[i : i + 1, : lengths[i]], alone, atol=1e-5, rtol=1e-5)
        (alone * weights[i : i + 1, : lengths[i]]).sum().backward()
    single = gradients(adapter)
    assert ragged.keys() == single.keys() == dict(adapter.named_parameters()).keys()
    for name in single:
        torch.testing.assert_close(ragged[name], single[name], atol=1e-5, rtol=1e-4)


def test_looks_both_ways_over_the_whole_utterance() -> None:
    adapter = build()
    (x,) = features((40,))
    for changed_frame, looked_at in ((39, 0), (0, 19)):
        changed = x.clone()
        changed[changed_frame] += 3
        before, after = (adapter(y[None], torch.tensor([40]))[0, looked_at] for y in (x, changed))
        assert (before - after).abs().max() > 1e-5


@pytest.mark.parametrize("rms", [0.01, 0.7])
@pytest.mark.parametrize("loudness", [0.01, 100.0])
def test_output_is_as_loud_as_the_embeddings_whatever_comes_in(rms: float, loudness: float) -> None:
    out = build(rms=rms)(loudness * pad_batch(features((30,))).padded, torch.tensor([30]))
    torch.testing.assert_close(out.square().mean(dim=-1).sqrt(), torch.full((1, 15), rms), atol=0, rtol=1e-3)


def test_loudness_is_saved_with_the_weights() -> None:
    saved, other = build(rms=0.02), build(rms=0.5)
    other.load_state_dict(saved.state_dict())
    x, lengths = torch.randn(1, 8, 24), torch.tensor([8])
    assert torch.equal(saved(x, lengths), other(x, lengths))


def test_rms_is_of_the_embeddings_that_the_decoder_reads() -> None:
    table = nn.Embedding(10_000, 8)
    assert embedding_rms(table) == pytest.approx(table.weight.square().mean().sqrt().item(), rel=1e-5)
    gemma = Gemma3TextModel(
        Gemma3TextConfig(
            vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, head_dim=8, intermediate_size=8
        )
    )
    scaled = gemma.get_input_embeddings()
    assert isinstance(scaled, nn.Embedding)  # its layer multiplies by the square root of the width
    assert embedding_rms(scaled) == pytest.approx(8 * scaled.weight.square().mean().sqrt().item(), rel=1e-3)


def test_size_of_the_papers_adapter() -> None:
    for decoder_dim, size in ((4096, 90e6), (8192, 102e6)):
        with torch.device("meta"):
            config = SpeechAdapterConfig(width=3072, heads=24, ffn=4096)
            adapter = SpeechAdapter(config, feature_dim=1536, decoder_dim=decoder_dim, embedding_rms=1.0)
        assert sum(parameter.numel() for parameter in adapter.parameters()) == pytest.approx(size, rel=0.005)


def test_bf16_autocast() -> None:
    adapter, batch = build(), pad_batch(features())
    exact = adapter(batch.padded, batch.lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = adapter(batch.padded, batch.lengths)
    rough.sum().backward()
    assert rough.dtype == torch.float32 and (rough - exact)[0, :5].norm() < 0.05 * exact[0, :5].norm()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in adapter.parameters())


def test_bad_settings_are_a_user_error() -> None:
    for change, message in (
        ({"width": 30}, "4 heads of even width"),
        ({"ffn": 0}, "ffn 0"),
        ({"dropout": 1}, "dropout"),
    ):
        with pytest.raises(UserError, match=message):
            build(**change)
