"""The CTC head: the loss by enumeration, padding without effect, targets that cannot fit, greedy decoding."""

import itertools

import pytest
import torch
from torch import Tensor

from speech.ctc import Characters, CTCHead, frames_needed

VOCABULARY, WIDTH = 3, 6


def build() -> CTCHead:
    torch.manual_seed(0)
    return CTCHead(width=WIDTH, vocabulary=VOCABULARY)


def collapse(path: tuple[int, ...]) -> list[int]:
    return [token for token, _ in itertools.groupby(path) if token != VOCABULARY]


def by_enumeration(head: CTCHead, hidden_TD: Tensor, target: list[int]) -> Tensor:
    """Minus the logarithm of the summed probability of every path that reads as the target."""
    log_probabilities = head(hidden_TD).detach().double().log_softmax(dim=-1)
    paths = itertools.product(range(VOCABULARY + 1), repeat=len(hidden_TD))
    scores = [sum(log_probabilities[t, k] for t, k in enumerate(path)) for path in paths if collapse(path) == target]
    return -torch.stack([torch.as_tensor(score) for score in scores]).logsumexp(dim=0)


def test_loss_is_the_sum_over_all_alignments() -> None:
    head, hidden = build(), torch.randn(3, 5, WIDTH)
    targets, lengths = [[0, 0], [2, 1, 0], []], torch.tensor([4, 5, 2])
    padded = torch.tensor([[0, 0, -9], [2, 1, 0], [7, 7, 7]])
    loss = head.loss(hidden, lengths, padded, torch.tensor([2, 3, 0]))
    expected = sum(by_enumeration(head, hidden[i, : lengths[i]], targets[i]) for i in range(3))
    assert loss.total.item() == pytest.approx(float(expected), rel=1e-5)
    assert (loss.tokens, loss.skipped) == (5, 0)


def test_padding_has_no_effect_and_no_gradient() -> None:
    head = build()
    hidden = torch.randn(2, 9, WIDTH)
    targets, target_lengths, lengths = torch.tensor([[0, 1], [2, 0]]), torch.tensor([2, 1]), torch.tensor([9, 5])
    x = hidden.clone().requires_grad_()
    together = head.loss(x, lengths, targets, target_lengths)
    together.total.backward()
    assert x.grad is not None and not x.grad[1, 5:].any() and x.grad[1, :5].any()
    alone = [
        head.loss(hidden[i : i + 1, : lengths[i]], lengths[i : i + 1], targets[i : i + 1], target_lengths[i : i + 1])
        for i in range(2)
    ]
    torch.testing.assert_close(together.total, alone[0].total + alone[1].total)
    changed = hidden.clone()
    changed[1, 5:] = 100.0
    torch.testing.assert_close(head.loss(changed, lengths, targets, target_lengths).total, together.total)


def test_a_target_that_cannot_fit_is_left_out_and_counted() -> None:
    head, hidden = build(), torch.randn(3, 4, WIDTH)
    targets = torch.tensor([[0, 0, 0], [0, 1, 2], [1, 2, 0]])
    lengths, target_lengths = torch.tensor([4, 3, 4]), torch.tensor([3, 3, 2])
    assert frames_needed(targets, target_lengths).tolist() == [5, 3, 2]
    assert frames_needed(targets[:, :0], torch.zeros(3, dtype=torch.long)).tolist() == [0, 0, 0]
    loss = head.loss(hidden, lengths, targets, target_lengths)
    fitting = head.loss(hidden[1:], lengths[1:], targets[1:], target_lengths[1:])
    torch.testing.assert_close(loss.total, fitting.total)
    assert loss.total.isfinite() and (loss.tokens, loss.skipped) == (5, 1)
    nothing = head.loss(hidden[:1], lengths[:1], targets[:1], target_lengths[:1])
    nothing.total.backward()
    assert nothing.total.item() == 0 and (nothing.tokens, nothing.skipped) == (0, 1)


def test_a_broken_encoder_is_not_hidden() -> None:
    head, hidden = build(), torch.full((1, 4, WIDTH), torch.nan)
    loss = head.loss(hidden, torch.tensor([4]), torch.tensor([[1]]), torch.tensor([1]))
    assert loss.total.isnan()


def test_fp32_under_autocast() -> None:
    head, hidden = build(), torch.randn(2, 30, WIDTH)
    targets, target_lengths, lengths = torch.tensor([[0, 1], [2, 0]]), torch.tensor([2, 2]), torch.tensor([30, 25])
    exact = head.loss(hidden, lengths, targets, target_lengths).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = head.loss(hidden, lengths, targets, target_lengths).total
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0, rtol=0.02)


@pytest.mark.parametrize("bad", [3, 4, -1])
def test_blanks_and_token_ids_outside_the_vocabulary_are_refused(bad: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 3 without the blank 3"):
        build().loss(torch.zeros(1, 4, WIDTH), torch.tensor([4]), torch.tensor([[0, bad]]), torch.tensor([2]))


def test_decoding_merges_repetitions_drops_blanks_and_ignores_padding() -> None:
    head = CTCHead(width=4, vocabulary=3)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(4))
        head.linear.bias.zero_()
    paths = [[0, 0, 3, 0, 1, 1], [3, 3, 2, 1, 1, 0], [3, 3, 0, 0, 0, 0]]
    hidden = torch.nn.functional.one_hot(torch.tensor(paths), 4).float()
    assert head.decode(hidden, torch.tensor([6, 4, 2])) == [[0, 0, 1], [2, 1], []]


def test_learns_to_spell() -> None:
    head = build()
    hidden, lengths = torch.randn(2, 12, WIDTH), torch.tensor([12, 9])
    targets, target_lengths = torch.tensor([[0, 0, 2], [1, 2, 0]]), torch.tensor([3, 2])
    frames = torch.nn.Parameter(hidden)
    optimizer = torch.optim.Adam([frames, *head.parameters()], lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        head.loss(frames, lengths, targets, target_lengths).total.backward()
        optimizer.step()
    assert head.decode(frames, lengths) == [[0, 0, 2], [1, 2]]


def test_characters_are_those_of_the_texts_and_spell_them() -> None:
    characters = Characters.of(["Bin blue,", "bin again"])
    assert characters.names == " abegilnu"
    ids = characters.encode("Blue bin again!")
    assert len(ids) == 14 and characters.decode(ids) == "blue bin again"
    assert characters.encode("zzz") == []
