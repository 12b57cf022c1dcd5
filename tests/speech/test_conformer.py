"""The speech encoder: alone as in a batch, its paper size, half precision, recomputation."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multimodal import attention
from multimodal.errors import UserError
from speech import conformer
from speech.conformer import Conformer, ConformerConfig
from speech.frames import pad_batch

LENGTHS = (37, 16, 1, 50, 20)


def build(**changes: Any) -> Conformer:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"width": 32, "layers": 3, "heads": 4, "ffn": 48, "dropout": 0.0} | changes
    encoder = Conformer(ConformerConfig(**settings))
    with torch.no_grad():
        for parameter in encoder.parameters():  # norms and biases too, so that padding is nowhere zero by itself
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def utterances(lengths: tuple[int, ...] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, 80, generator=generator) for length in lengths]


def gradients(encoder: Conformer) -> dict[str, Tensor]:
    found = {
        name: parameter.grad.clone() for name, parameter in encoder.named_parameters() if parameter.grad is not None
    }
    encoder.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("conv_norm", ["layer", "batch"])
def test_ragged_batch_equals_each_utterance_alone_also_in_gradients(conv_norm: str) -> None:
    encoder = build(conv_norm=conv_norm).eval()
    batch = pad_batch(utterances())
    features = torch.full((len(LENGTHS), 60, 80), torch.nan)  # anything may stand behind an utterance
    for row, utterance in zip(features, utterances(), strict=True):
        row[: len(utterance)] = utterance
    together = encoder(features, batch.lengths)
    lengths = encoder.output_length(batch.lengths)
    assert lengths.tolist() == [encoder.output_length(n) for n in LENGTHS] == [10, 4, 1, 13, 5]
    assert together.shape == (5, 13, 32)
    weights = torch.randn(together.shape)
    sum((together[i, :n] * weights[i, :n]).sum() for i, n in enumerate(lengths.tolist())).backward()  # type: ignore[union-attr]
    ragged = gradients(encoder)
    for i, utterance in enumerate(utterances()):
        alone = encoder(utterance[None], torch.tensor([len(utterance)]))
        torch.testing.assert_close(together[i : i + 1, : lengths[i]], alone, atol=1e-5, rtol=1e-5)
        (alone * weights[i : i + 1, : lengths[i]]).sum().backward()
    single = gradients(encoder)
    assert ragged.keys() == single.keys() == dict(encoder.named_parameters()).keys()
    for name in single:
        torch.testing.assert_close(ragged[name], single[name], atol=1e-5 * single[name].abs().max().item(), rtol=1e-4)


def test_no_mask_where_all_are_equally_long(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor | None] = []
    kernel = attention.F.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        masks.append(attn_mask)
        return kernel(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    encoder = build().eval()
    x = torch.randn(3, 20, 80)
    encoder(x, torch.tensor([14, 16, 13]))  # all of four encoder frames, and nobody needs the frames behind
    assert masks == [None] * 3
    encoder(x, torch.tensor([14, 16, 9]))
    assert all(mask is not None for mask in masks[3:])


@pytest.mark.parametrize("conv_norm", ["layer", "batch"])
def test_utterances_end_to_end_give_what_padded_ones_do(monkeypatch: pytest.MonkeyPatch, conv_norm: str) -> None:
    batch = pad_batch(utterances((61, 4, 30, 9)))
    frames = [16, 1, 8, 3]
    results: list[tuple[Tensor, dict[str, Tensor]]] = []
    for worthwhile in (1.0, 0.125):
        monkeypatch.setattr(conformer, "WORTHWHILE", worthwhile)
        encoder, shapes = build(conv_norm=conv_norm).train(), []
        encoder.layers[0].register_forward_pre_hook(
            lambda _m, args, into=shapes: into.append((*args[0].shape, args[2]))
        )
        out = encoder(batch.padded, batch.lengths)
        valid = torch.cat([one[:length] for one, length in zip(out, frames, strict=True)])
        (valid * torch.linspace(-1, 1, valid.numel()).view_as(valid)).sum().backward()
        results.append((valid, gradients(encoder) | dict(encoder.named_buffers())))
        assert shapes == [(4, 16, 32, None) if worthwhile == 1.0 else (1, 28, 32, tuple(frames))]
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    for name, value in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], value, atol=1e-5, rtol=1e-4)


def test_whole_utterance_and_its_order_are_heard() -> None:
    encoder = build().eval()
    (utterance,) = utterances((200,))
    lengths = torch.tensor([200])
    changed = utterance.clone()
    changed[-1] += 1
    difference = (encoder(changed[None], lengths) - encoder(utterance[None], lengths)).abs().amax(dim=-1)[0]
    assert difference[0] > 1e-5 and difference[-1] > 1e-2
    mirrored = encoder(utterance.flip(0)[None], lengths)
    assert (mirrored.flip(1) - encoder(utterance[None], lengths)).abs().max() > 1e-2


def test_size_of_the_papers_encoder() -> None:
    with torch.device("meta"):
        encoder = Conformer(ConformerConfig(width=1536, layers=24, heads=24, ffn=4096))
    layer = sum(parameter.numel() for parameter in encoder.layers[0].parameters())
    assert layer == pytest.approx(41.7e6, rel=0.002)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(1.0e9, rel=0.01)


@pytest.mark.parametrize("conv_norm", ["layer", "batch"])
def test_checkpointing_changes_neither_gradients_nor_statistics(conv_norm: str) -> None:
    batch = pad_batch(utterances())
    results: list[dict[str, Tensor]] = []
    for checkpointing in (False, True):
        encoder = build(conv_norm=conv_norm, dropout=0.2).train()
        if checkpointing:
            encoder.enable_gradient_checkpointing()
        torch.manual_seed(5)
        encoder(batch.padded, batch.lengths).square().mean().backward()
        results.append(gradients(encoder) | dict(encoder.named_buffers()))
    assert results[0].keys() == results[1].keys()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value)


@pytest.mark.parametrize("conv_norm", ["layer", "batch"])
def test_bf16_autocast_with_checkpointing(conv_norm: str) -> None:
    encoder = build(conv_norm=conv_norm).train()
    batch = pad_batch(utterances((37, 20)))
    exact = encoder(batch.padded, batch.lengths)
    encoder.enable_gradient_checkpointing()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(batch.padded, batch.lengths)
        loss = rough.float().square().mean()
    loss.backward()
    assert (rough - exact)[0].norm() < 0.05 * exact[0].norm()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_dropout_acts_in_training_alone() -> None:
    encoder = build(dropout=0.3)
    x, lengths = torch.randn(1, 40, 80), torch.tensor([40])
    assert not torch.equal(encoder.train()(x, lengths), encoder(x, lengths))
    assert torch.equal(encoder.eval()(x, lengths), encoder(x, lengths))
    encoder.requires_grad_(False).train()
    assert torch.equal(encoder(x, lengths), encoder(x, lengths))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30}, "width 30 does not divide into 4 heads"),
        ({"width": 36}, "heads of even width"),
        ({"kernel": 4}, "expected an odd number"),
        ({"layers": 0}, "layers 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"conv_norm": "group"}, "'layer' or 'batch'"),
    ],
)
def test_bad_settings_are_a_user_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ConformerConfig(**change)


def test_wrong_features_are_refused() -> None:
    encoder = build()
    with pytest.raises(UserError, match="found 64 mel bands, expected 80"):
        encoder(torch.zeros(1, 8, 64), torch.tensor([8]))
    with pytest.raises(ValueError, match="expected 1 to 8 frames"):
        encoder(torch.zeros(1, 8, 80), torch.tensor([9]))
    assert isinstance(encoder, nn.Module)
