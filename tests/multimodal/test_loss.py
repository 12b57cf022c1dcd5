import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal.decoder import FrozenDecoder
from multimodal.loss import IGNORE, Excluded, FrozenHead, Teacher, frozen_head_loss
from tests.multimodal.tiny_decoders import FAMILIES, SCALED_FAMILIES, VOCAB, WIDTH, tiny_decoder


def batch(scale: float = 1.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, targets = torch.randn(3, 11, WIDTH) * scale, torch.randint(0, VOCAB, (3, 11))
    targets[0, :6] = IGNORE
    targets[2] = IGNORE
    return hidden.requires_grad_(), targets


def plain(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE)


@pytest.mark.parametrize("family", FAMILIES + SCALED_FAMILIES)
def test_loss_and_gradient_equal_plain_cross_entropy(family: str):
    lm = tiny_decoder(family)
    decoder = FrozenDecoder(lm)
    torch.manual_seed(0)
    ids = torch.randint(1, VOCAB, (2, 9))
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORE)], 1)
    total, count = frozen_head_loss(decoder.hidden(ids), targets, decoder, chunk=5)
    torch.testing.assert_close(total, plain(lm(ids).logits, targets))
    assert count == 16 and total.dtype == torch.float32

    hidden, targets = batch(scale=3.0)
    expected = plain(FrozenHead(lm)(hidden), targets)
    expected.backward()
    expected_grad, hidden.grad = hidden.grad, None
    total, count = frozen_head_loss(hidden, targets, decoder, chunk=4)
    (total / count).backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(hidden.grad, None if expected_grad is None else expected_grad / count)


def test_softcapping_really_bends_the_loss():
    hidden, targets = batch(scale=3.0)
    capped, uncapped = (FrozenHead(tiny_decoder("gemma2", final_logit_softcapping=cap)) for cap in (1.0, None))
    difference = frozen_head_loss(hidden, targets, capped)[0] - frozen_head_loss(hidden, targets, uncapped)[0]
    assert difference.abs().item() > 1


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunk_size_changes_nothing(chunk: int):
    hidden, targets = batch()
    head = FrozenHead(tiny_decoder())
    total, count = frozen_head_loss(hidden, targets, head, chunk=chunk)
    whole, whole_count = frozen_head_loss(hidden, targets, head, chunk=64)
    torch.testing.assert_close(total, whole)
    assert count == whole_count == int((targets != IGNORE).sum())


def test_ignored_positions_never_reach_the_head():
    hidden, targets = batch()
    head, rows = FrozenHead(tiny_decoder()), []

    def counting(x: Tensor) -> Tensor:
        rows.append(len(x))
        return head(x)

    total, count = frozen_head_loss(hidden, targets, counting, chunk=10)
    total.backward()
    assert sum(rows) == count and max(rows) <= 10
    assert hidden.grad is not None and not hidden.grad[targets == IGNORE].any()
    assert hidden.grad[targets != IGNORE].abs().amax(-1).gt(0).all()


def test_accumulating_parts_equals_the_whole_with_unequal_lengths():
    hidden, targets = batch()
    head = FrozenHead(tiny_decoder())
    total, count = frozen_head_loss(hidden, targets, head)
    (total / count).backward()
    whole, hidden.grad = hidden.grad, None
    for row in range(3):
        part, _ = frozen_head_loss(hidden[row : row + 1], targets[row : row + 1], head)
        (part / count).backward()
    torch.testing.assert_close(hidden.grad, whole)


def test_nothing_to_learn_is_zero_and_still_part_of_the_graph():
    hidden, targets = batch()
    total, count = frozen_head_loss(hidden, torch.full_like(targets, IGNORE), FrozenHead(tiny_decoder()))
    total.backward()
    assert count == 0 and total.item() == 0 and hidden.grad is not None and not hidden.grad.any()


def test_evaluation_computes_no_gradient():
    hidden, targets = batch()
    head = FrozenHead(tiny_decoder())
    with torch.no_grad():
        total, _ = frozen_head_loss(hidden, targets, head)
    assert not total.requires_grad
    torch.testing.assert_close(total, frozen_head_loss(hidden, targets, head)[0].detach())
    assert not frozen_head_loss(hidden.detach(), targets, head)[0].requires_grad


class Saved:
    """A tensor that autograd keeps for backward."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(compute: Callable[[], Any]) -> int:
    """Bytes that autograd still keeps for backward when `compute` is through, each storage once."""
    alive: weakref.WeakSet[Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Saved:
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        keep = compute()
        storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in alive}
    del keep
    return sum(storages.values())


def test_what_is_saved_for_backward_does_not_grow_with_the_vocabulary():
    lm = tiny_decoder(vocab_size=4000, tie_word_embeddings=False)
    head = FrozenHead(lm)
    hidden = torch.randn(4, 128, WIDTH, requires_grad=True)
    targets = torch.randint(0, 4000, (4, 128))
    targets[:, :64] = IGNORE
    ours = saved_bytes(lambda: frozen_head_loss(hidden, targets, head))
    plainly = saved_bytes(lambda: plain(head(hidden), targets))
    assert ours <= 256 * WIDTH * 4 + 8 * 2 * 512 * 2 and plainly > 50 * ours


def test_bf16_hidden_states_get_bf16_gradients_and_an_fp32_loss():
    lm = tiny_decoder()
    hidden, targets = batch()
    expected, _ = frozen_head_loss(hidden, targets, FrozenHead(lm))
    half = hidden.detach().bfloat16().requires_grad_()
    total, _ = frozen_head_loss(half, targets, FrozenHead(lm.bfloat16()))
    total.backward()
    assert total.dtype == torch.float32 and half.grad is not None and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(total, expected, rtol=0.02, atol=0.1)


# ---- a teacher in the place of targets ----------------------------------------------------------------------------


def taught(hidden: Tensor, targets: Tensor) -> tuple[Teacher, Tensor]:
    """Teaches the first row of `batch`, in an order of its own; and the positions that it teaches."""
    at = (targets != IGNORE) & (torch.arange(3)[:, None] == 0)
    rows, count = torch.full_like(targets, -1), int(at.sum())
    rows[at] = torch.arange(count).flip(0)
    torch.manual_seed(1)
    return Teacher(torch.randn(count, WIDTH) * 2, rows), at


def plain_divergence(own: Tensor, wanted: Tensor) -> Tensor:
    """KL(wanted || own) as it is written."""
    return (wanted.softmax(-1) * (wanted.softmax(-1).log() - own.softmax(-1).log())).sum()


@pytest.mark.parametrize("family", ["llama", *SCALED_FAMILIES, "gemma2"])
def test_with_a_teacher_loss_and_gradient_are_the_plain_divergence_and_elsewhere_cross_entropy(family: str):
    head = FrozenHead(tiny_decoder(family))
    hidden, targets = batch()
    teacher, at = taught(hidden, targets)
    expected = plain(head(hidden), targets.masked_fill(at, IGNORE))
    expected = expected + plain_divergence(head(hidden[at]), head(teacher.hidden_ND).flip(0))
    expected.backward()
    expected_grad, hidden.grad = hidden.grad, None
    total, count = frozen_head_loss(hidden, targets, head, teacher=teacher, chunk=2)
    total.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(hidden.grad, expected_grad)
    assert count == int((targets != IGNORE).sum()) and at.sum() == 5
    assert total - frozen_head_loss(hidden, targets, head)[0] != 0


def test_a_student_that_says_the_same_has_nothing_to_learn():
    head, (hidden, targets) = FrozenHead(tiny_decoder()), batch()
    rows = torch.arange(targets.numel()).view_as(targets).masked_fill(targets == IGNORE, -1)
    total, count = frozen_head_loss(hidden, targets, head, teacher=Teacher(hidden.detach().flatten(0, 1), rows))
    total.backward()
    assert count == 16 and hidden.grad is not None
    assert total.abs() < 1e-5 and hidden.grad.abs().max() < 1e-6
    half = Teacher(hidden.detach().flatten(0, 1) / 2, rows)
    hidden.grad = None
    frozen_head_loss(hidden, targets, head, teacher=half)[0].backward()
    assert hidden.grad.abs().max() > 1e-3, "no teacher moves this student, so this test shows nothing"


def test_rows_of_a_batch_take_their_teacher_along():
    head, (hidden, targets) = FrozenHead(tiny_decoder()), batch()
    teacher, _ = taught(hidden, targets)
    whole, count = frozen_head_loss(hidden, targets, head, teacher=teacher)
    parts = [
        frozen_head_loss(hidden[rows, :11], targets[rows, :11], head, teacher=teacher.rows(rows, 11))
        for rows in (torch.tensor([1]), torch.tensor([2, 0]))
    ]
    torch.testing.assert_close(torch.stack([loss for loss, _ in parts]).sum(), whole)
    assert sum(n for _, n in parts) == count


def test_with_a_teacher_nothing_of_vocabulary_size_is_saved():
    head = FrozenHead(tiny_decoder(vocab_size=4000, tie_word_embeddings=False))
    hidden, targets = torch.randn(2, 128, WIDTH, requires_grad=True), torch.randint(0, 4000, (2, 128))
    teacher = Teacher(torch.randn(256, WIDTH), torch.arange(256).view(2, 128))
    ours = saved_bytes(lambda: frozen_head_loss(hidden, targets, head, teacher=teacher))
    assert ours <= 4 * 256 * WIDTH * 4 < 4000 * 256


@pytest.mark.parametrize("chunk", [4, 256])
def test_excluded_tokens_take_no_part_in_the_softmax(chunk: int):
    hidden, targets = batch(scale=3.0)
    head = FrozenHead(tiny_decoder())
    keep = targets != IGNORE
    torch.manual_seed(1)
    excluded = torch.rand(int(keep.sum()), VOCAB) < 0.4
    excluded.scatter_(1, targets[keep][:, None], False)
    logits = head(hidden[keep]).float()
    expected = torch.stack(
        [
            torch.logsumexp(row[~out], 0) - row[target]
            for row, out, target in zip(logits, excluded, targets[keep], strict=True)
        ]
    ).sum()
    (gradient,) = torch.autograd.grad(expected, hidden)
    total, count = frozen_head_loss(
        hidden, targets, head, excluded=Excluded(torch.arange(VOCAB), excluded), chunk=chunk
    )
    total.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(hidden.grad, gradient)
    assert count == len(logits)


def test_positions_with_a_teacher_exclude_nothing():
    hidden, targets = batch()
    head = FrozenHead(tiny_decoder())
    keep = targets != IGNORE
    row = torch.full_like(targets, -1)
    row[1, :3] = torch.arange(3)
    teacher = Teacher(torch.randn(3, WIDTH), row)
    excluded = torch.zeros(int(keep.sum()), VOCAB, dtype=torch.bool)
    excluded[(row >= 0)[keep]] = True
    taught, untaught = (
        frozen_head_loss(hidden, targets, head, teacher=teacher, excluded=e)[0]
        for e in (Excluded(torch.arange(VOCAB), excluded), None)
    )
    assert torch.equal(taught, untaught)
    excluded[-1, (targets[keep][-1] + 1) % VOCAB] = True  # one position without a teacher
    more = Excluded(torch.arange(VOCAB), excluded)
    assert frozen_head_loss(hidden, targets, head, teacher=teacher, excluded=more)[0] < untaught
