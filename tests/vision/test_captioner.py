"""The text decoder that teaches the encoder to say what it sees."""

import pytest
import torch
import torch.nn.functional as F

from vision.captioner import Captioner

VOCABULARY, WIDTH = 30, 12


def build(max_length: int = 10) -> Captioner:
    torch.manual_seed(0)
    captioner = Captioner(vocab_size=VOCABULARY, image_width=WIDTH, width=16, layers=2, heads=2, max_length=max_length)
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return captioner.eval()


def texts(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and their mask, padded on the right."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(VOCABULARY, mask.shape), mask.long()


def test_a_token_is_told_from_those_before_it() -> None:
    captioner, pictures = build(), [torch.randn(5, WIDTH)]
    ids, mask = texts(6)
    logits = captioner(pictures, ids, mask, [0])
    other = ids.clone()
    other[0, 3] = (ids[0, 3] + 1) % VOCABULARY
    changed = (captioner(pictures, other, mask, [0]) - logits).abs().amax(1)
    assert (changed[:4] < 1e-6).all() and (changed[4:] > 1e-4).all()


def test_ragged_batch_equals_each_alone() -> None:
    captioner, pictures = build(), [torch.randn(n, WIDTH) for n in (5, 9, 2)]
    ids, mask = texts(4, 2, 7)
    together = captioner(pictures, ids, mask, range(3)).split(mask.sum(1).tolist())
    for i, logits in enumerate(together):
        length = len(logits)
        alone = captioner(pictures[i : i + 1], ids[i : i + 1, :length], mask[i : i + 1, :length], [0])
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
    ids[mask == 0] = VOCABULARY + 7  # padding may carry any id, such as one beyond the table
    torch.testing.assert_close(torch.cat(together), captioner(pictures, ids, mask, range(3)))


def test_several_texts_of_one_picture_equal_the_picture_repeated() -> None:
    captioner, (a, b, c) = build(), [torch.randn(n, WIDTH) for n in (5, 5, 9)]
    ids, mask = texts(4, 4, 2, 7, 4)
    shared = captioner([a, b, c], ids, mask, [1, 0, 2, 1, 1])
    torch.testing.assert_close(shared, captioner([b, a, c, b, b], ids, mask, range(5)))


def test_every_token_looks_at_the_picture() -> None:
    captioner, picture = build(), torch.randn(5, WIDTH)
    ids, mask = texts(6)
    changed = captioner([picture], ids, mask, [0]) - captioner([picture.flip(1)], ids, mask, [0])
    assert (changed.abs().amax(1) > 1e-3).all()


def test_loss_is_the_cross_entropy_of_all_tokens_that_fit() -> None:
    captioner, pictures = build(max_length=5), [torch.randn(3, WIDTH), torch.randn(4, WIDTH)]
    ids, mask = texts(3, 8)
    logits = captioner(pictures, ids[:, :5], mask[:, :5], [0, 1])
    expected = F.cross_entropy(logits, torch.cat([ids[0, :3], ids[1, :5]]))
    assert captioner.loss(pictures, ids, mask, [0, 1]).item() == pytest.approx(expected.item())
    assert len(logits) == 8


def test_words_already_said_may_be_read_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    captioner, pictures = build(max_length=1000), [torch.randn(3, WIDTH)]
    ids, mask = texts(1000)
    read: list[torch.Tensor] = []

    def reading(pictures: object, ids: torch.Tensor, mask: torch.Tensor, index: object) -> torch.Tensor:
        read.append(ids)
        return torch.zeros(int(mask.sum()), VOCABULARY).scatter(1, right[:, None], 9.0)

    right = ids[0]
    monkeypatch.setattr(captioner, "forward", reading)
    assert captioner.loss(pictures, ids, mask, [0], misread=0.3).item() < 0.01  # what is to be said stays
    assert 0.2 < (read[0] != ids).float().mean() < 0.4
    captioner.loss(pictures, ids, mask, [0])
    assert torch.equal(read[1], ids)
