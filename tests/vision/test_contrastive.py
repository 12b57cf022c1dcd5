"""Contrastive pre-training: the loss and its positives, the text tower's padding, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F

from vision.captioner import Captioner
from vision.contrastive import (
    ContrastiveBatch,
    ContrastiveTask,
    TextTower,
    contrastive_loss,
    positive_pairs,
    retrieval_recall,
)
from vision.encoder import ImageEncoder, ImageEncoderConfig, _some_patches
from vision.tiling import TileBatch


def build(seed: int = 0, *, caption_weight: float = 0.0) -> ContrastiveTask:
    torch.manual_seed(seed)
    config = ImageEncoderConfig(tile_size=16, patch_size=8, width=32, layers=2, global_layers=1, heads=4, stem="conv")
    text = TextTower(vocab_size=40, width=32, layers=1, heads=4, max_length=8)
    encoder = ImageEncoder(config)
    if not caption_weight:
        return ContrastiveTask(encoder, text, embed_dim=16)
    captioner = Captioner(vocab_size=40, image_width=32, width=32, layers=1, heads=4, max_length=8)
    return ContrastiveTask(encoder, text, embed_dim=16, captioner=captioner, caption_weight=caption_weight)


def test_diagonal_loss_is_clips() -> None:
    torch.manual_seed(0)
    u, v = torch.randn(6, 8), torch.randn(6, 8)
    logits = 14.0 * F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).T
    target = torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(u, v, 14.0), expected)
    torch.testing.assert_close(contrastive_loss(3 * u, v / 5, 14.0), expected)  # lengths do not matter
    assert contrastive_loss(u, u, 100.0) < 1e-3 < contrastive_loss(u, u.roll(1, 0), 100.0)


def test_second_caption_of_a_picture_is_a_positive() -> None:
    """Both captions on their picture's vector is the optimum; the plain diagonal would punish it."""
    u = torch.eye(3)
    index = torch.tensor([0, 0, 1, 2])
    positives = index == torch.arange(3).unsqueeze(1)
    v = u[index].requires_grad_()
    loss = contrastive_loss(u, v, 50.0, positives)
    assert loss.item() == pytest.approx(0.5 * math.log(2) / 3, abs=1e-5)  # picture 0 splits its target
    assert torch.autograd.grad(loss, v)[0].abs().max() < 1e-5
    worse = contrastive_loss(u, u[torch.tensor([0, 1, 1, 2])], 50.0, positives)
    assert worse > loss + 1


def test_loss_does_not_depend_on_the_order_of_texts() -> None:
    torch.manual_seed(0)
    u, v, index = torch.randn(3, 8), torch.randn(5, 8), torch.tensor([0, 0, 1, 2, 2])
    order = torch.randperm(5)
    images = torch.arange(3).unsqueeze(1)
    torch.testing.assert_close(
        contrastive_loss(u, v, 10.0, index == images), contrastive_loss(u, v[order], 10.0, index[order] == images)
    )


def test_a_picture_without_text_is_a_negative_only() -> None:
    torch.manual_seed(0)
    u, v = torch.randn(3, 8), torch.randn(2, 8)
    positives = torch.eye(3, 2, dtype=torch.bool)
    loss = contrastive_loss(u, v, 10.0, positives)
    logits = 10.0 * F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).T
    expected = F.cross_entropy(logits[:2], torch.arange(2)) + F.cross_entropy(logits.T, torch.arange(2))
    torch.testing.assert_close(loss, expected / 2)


def test_equal_texts_are_positives_of_each_others_pictures() -> None:
    ids = torch.tensor([[5, 6, 0], [7, 8, 9], [5, 6, 3], [5, 6, 2]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 1]])  # texts 0 and 2 differ in padding alone
    pairs = positive_pairs(torch.tensor([0, 0, 1, 2]), 3, ids, mask)
    assert pairs.tolist() == [[True, True, True, False], [True, False, True, False], [False, False, False, True]]


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_seen_by_nobody(left: bool) -> None:
    text = build().text
    ids = torch.tensor([[3, 4, 5]])
    padding = torch.tensor([[1000, 7]])  # an id beyond the table is fine where nobody reads it
    halves = (padding, ids) if left else (ids, padding)
    marks = (torch.zeros(1, 2), torch.ones(1, 3)) if left else (torch.ones(1, 3), torch.zeros(1, 2))
    torch.testing.assert_close(text(torch.cat(halves, 1), torch.cat(marks, 1).long()), text(ids, torch.ones(1, 3)))
    assert not torch.allclose(text(ids.flip(1), torch.ones(1, 3)), text(ids, torch.ones(1, 3)))


def test_tokens_after_the_longest_text_are_not_read() -> None:
    text = build().text
    ids = torch.randint(0, 40, (2, 12))
    mask = torch.ones_like(ids)
    torch.testing.assert_close(text(ids, mask), text(ids[:, :8], mask[:, :8]))


def test_scale_is_held_at_100_and_comes_back() -> None:
    task = build()
    assert task.scale().item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        task.log_scale.fill_(9.0)
    task.scale().backward()
    assert task.scale().item() == pytest.approx(100, rel=1e-5) and task.log_scale.grad is not None
    assert task.log_scale.grad.item() > 0  # not stuck, as behind a clamp


def batch_of(task: ContrastiveTask, images: int = 4, captions: int = 2) -> ContrastiveBatch:
    generator = torch.Generator().manual_seed(0)
    tiles = TileBatch(torch.randn(images, 3, 16, 16, generator=generator), [(1, 1)] * images)
    ids = torch.randint(1, 40, (images * captions, 5), generator=generator)
    return ContrastiveBatch(tiles, ids, torch.ones_like(ids), torch.arange(images).repeat_interleave(captions))


@pytest.mark.parametrize("caption_weight", [0.0, 2.0])
def test_parts_are_all_that_gets_gradient(caption_weight: float) -> None:
    task = build(caption_weight=caption_weight)
    loss, texts = task.loss(batch_of(task))
    loss.backward()
    assert texts == 8
    parts = task.parts()
    named = dict(task.named_parameters())
    for name, parameter in [pair for part in parts.values() for pair in part]:
        assert named[name] is parameter and parameter.grad is not None and parameter.grad.any(), name
    assert not any("global" in name or "tap" in name or "gate" in name for name, _ in parts["encoder"])
    assert "log_scale" in dict(parts["text"]) and len(parts["encoder"]) > 10


def test_captioning_adds_its_loss_on_each_texts_own_picture() -> None:
    plain, both = build(), build(caption_weight=2.0)
    both.load_state_dict(plain.state_dict(), strict=False)
    batch = batch_of(plain)
    (contrast, texts), (total, _) = plain.loss(batch), both.loss(batch)
    tokens, _ = both.encoder.tokens_and_pool(batch.tiles)
    assert both.captioner is not None
    said = both.captioner.loss(tokens, batch.input_ids, batch.attention_mask, [0, 0, 1, 1, 2, 2, 3, 3])
    torch.testing.assert_close(total, contrast + 2 * said * texts)


def test_retrieval_recall_counts_both_directions_and_ties_as_wrong() -> None:
    images, index = torch.eye(4), torch.tensor([0, 0, 1, 2, 3])
    perfect = retrieval_recall(images, images[index], index)
    assert perfect.text_to_image == {1: 1.0, 5: 1.0} and perfect.image_to_text == {1: 1.0, 5: 1.0}
    wrong = torch.tensor([0, 1, 1, 2, 2])  # texts 1 and 4 lie on a foreign picture
    recall = retrieval_recall(images, images[wrong], index, ks=(1,))
    assert recall.text_to_image[1] == pytest.approx(3 / 5)
    assert recall.image_to_text[1] == pytest.approx(
        1 / 4
    )  # pictures 1 and 2 tie with a foreign text, picture 3 has none near
    constant = retrieval_recall(torch.ones(4, 4), torch.ones(5, 4), index, ks=(1, 4))
    assert constant.text_to_image == {1: 0.0, 4: 1.0} and constant.image_to_text[1] == 0.0


def test_training_separates_pairs_it_has_not_seen() -> None:
    """A colour and a side, told in two tokens: 16 kinds; fresh noise each time, so recall is on unseen pictures."""
    task = build()
    colours = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]])
    generator = torch.Generator().manual_seed(0)

    def draw() -> ContrastiveBatch:
        colour, quarter = torch.arange(16) // 4, torch.arange(16) % 4
        pixels = 0.3 * torch.randn(16, 3, 16, 16, generator=generator)
        for i, (c, q) in enumerate(zip(colour.tolist(), quarter.tolist(), strict=True)):
            y, x = 8 * (q // 2), 8 * (q % 2)
            pixels[i, :, y : y + 8, x : x + 8] += colours[c].view(3, 1, 1)
        ids = torch.stack([1 + colour, 10 + quarter], dim=1)
        return ContrastiveBatch(TileBatch(pixels, [(1, 1)] * 16), ids, torch.ones_like(ids), torch.arange(16))

    parameters = [parameter for part in task.parts().values() for _, parameter in part]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.9, 0.98))
    losses = []
    for _ in range(90):
        total, count = task.loss(draw())
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append(total.item() / count)
    assert losses[-1] < 0.3 * losses[0]
    task.eval()
    with torch.no_grad():
        held_out = draw()
        vectors = task.embed_images(held_out.tiles), task.embed_texts(held_out.input_ids, held_out.attention_mask)
    recall = retrieval_recall(*vectors, torch.arange(16))
    assert recall.text_to_image[1] > 0.8 and recall.image_to_text[1] > 0.8  # chance: 1/16


def test_patches_are_dropped_in_training_alone() -> None:
    task = build(caption_weight=2.0)
    tiles = batch_of(task).tiles
    whole, pooled = task.encoder.tokens_and_pool(tiles)
    some, other = task.encoder.tokens_and_pool(tiles, dropped=0.5)
    assert [len(t) - n for t, n in zip(some, tiles.lengths, strict=True)] == [
        (len(t) - n) // 2 for t, n in zip(whole, tiles.lengths, strict=True)
    ]
    assert not torch.allclose(pooled, other)
    task.patch_dropout = 0.5
    batch = batch_of(task)
    task.eval()
    assert torch.equal(task.loss(batch)[0], task.loss(batch)[0])
    task.train()
    assert not torch.equal(task.loss(batch)[0], task.loss(batch)[0])


def test_words_are_read_wrong_in_training_alone() -> None:
    task = build(caption_weight=2.0)
    batch, task.misread = batch_of(task), 0.5
    task.eval()
    assert torch.equal(task.loss(batch)[0], task.loss(batch)[0])
    task.train()
    assert not torch.equal(task.loss(batch)[0], task.loss(batch)[0])


def test_no_patch_is_taken_twice_and_the_class_token_stays() -> None:
    x_TLD = torch.arange(3 * 10.0).view(3, 10, 1)
    found = _some_patches(x_TLD, kept=4)[..., 0]
    assert found.shape == (3, 5) and torch.equal(found[:, 0], x_TLD[:, 0, 0])
    assert (found.diff(dim=1) > 0).all()
    assert all(set(row) <= set(whole) for row, whole in zip(found.tolist(), x_TLD[..., 0].tolist(), strict=True))
