"""Activations that wait elsewhere come back as they were; weights and logits stay where they are."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from multimodal.loss import frozen_head_loss
from multimodal.train import offload
from multimodal.train.offload import activations_on_cpu
from tests.multimodal.tiny_decoders import VOCAB, grafted, memory_of, prompt
from tests.multimodal.train.test_loop import assert_identical, final_tensors, run


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What was moved, which now is tensors of any size."""
    moved: list[Tensor] = []
    send = offload._send

    def spy(tensor: Tensor) -> offload._Waiting:
        waiting = send(tensor)
        if waiting is not tensor:
            moved.append(tensor)
        return waiting

    monkeypatch.setattr(offload, "SMALLEST", 0)
    monkeypatch.setattr(offload, "_send", spy)
    return moved


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_equal_and_weights_stay(sent: list[Tensor], checkpointing: bool, bf16: bool) -> None:
    decoder = grafted()
    if bf16:
        decoder.lm.bfloat16()  # as it is kept on a GPU
    if checkpointing:
        decoder.enable_gradient_checkpointing()
    ids, mask = prompt()
    targets = ids.clamp(max=VOCAB - 1)

    def gradients(moving: bool) -> list[Tensor]:
        decoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if moving:
                with activations_on_cpu():
                    hidden = decoder.hidden(ids, mask, memory=memory_of(decoder, ids))
                    loss, _ = frozen_head_loss(hidden, targets, decoder)
            else:
                hidden = decoder.hidden(ids, mask, memory=memory_of(decoder, ids))
                loss, _ = frozen_head_loss(hidden, targets, decoder)
        loss.backward()
        return [p.grad.clone() for p in decoder.parameters() if p.grad is not None]

    plain, again = gradients(False), gradients(True)
    assert plain and all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert sent and not any(t.shape[-1:] == (VOCAB,) for t in sent)
    weights = [p.detach().bfloat16() for p in decoder.parameters() if p.ndim == 2]
    moved = [t.detach().bfloat16() for t in sent if t.ndim == 2]
    assert not any(m.shape == v.shape and torch.equal(m, v) for m in moved for w in weights for v in (w, w.T))


def test_small_tensors_are_not_moved() -> None:
    small, large = torch.ones(8), torch.ones(offload.SMALLEST)
    assert offload._send(small) is small
    waiting = offload._send(large)
    assert isinstance(waiting, tuple) and torch.equal(offload._fetch(waiting), large)


def test_a_run_is_the_same_to_the_bit(tmp_path: Path, sent: list[Tensor]) -> None:
    run(tmp_path / "plain", steps=5)
    assert not sent
    run(tmp_path / "moved", steps=5, offload_activations=True)
    assert sent
    assert_identical(final_tensors(tmp_path / "moved", 5), final_tensors(tmp_path / "plain", 5))
