"""Padded frames: garbage behind an utterance goes, what belongs to it stays."""

import pytest
import torch

from speech.frames import ceil_divide, frame_mask, pad_batch, padding_mask, stack_frames, trim


def test_lengths_of_numbers_and_tensors() -> None:
    assert [ceil_divide(n, 4) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    assert ceil_divide(torch.tensor([1, 4, 5, 8, 9]), 4).tolist() == [1, 1, 2, 2, 3]


def test_batch_trim_and_masks() -> None:
    utterances = [torch.randn(n, 3) for n in (5, 2, 4)]
    batch = pad_batch(utterances)
    assert batch.padded.shape == (3, 5, 3) and batch.lengths.tolist() == [5, 2, 4]
    spoiled = torch.full((3, 8, 3), torch.nan)
    for row, utterance in zip(spoiled, utterances, strict=True):
        row[: len(utterance)] = utterance
    assert torch.equal(trim(spoiled, batch.lengths), batch.padded)
    mask = frame_mask(batch.lengths, 5)
    assert mask.sum(dim=1).tolist() == [5, 2, 4] and mask[:, :2].all()
    ragged = padding_mask(batch.lengths, 5)
    assert ragged is not None and torch.equal(ragged, mask)
    assert padding_mask(torch.tensor([5, 5]), 5) is None
    assert padding_mask(torch.tensor([5, 5]), 6) is not None


@pytest.mark.parametrize("lengths", [[0, 3], [3, 6], [-1, 2]])
def test_a_length_that_cannot_be_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="expected 1 to 5 frames"):
        trim(torch.zeros(2, 5, 3), torch.tensor(lengths))


def test_stacked_frames_stand_side_by_side_in_order() -> None:
    x = torch.arange(1.0, 13.0).view(1, 6, 2)
    stacked = stack_frames(x, 4)
    assert stacked.tolist() == [[[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 11, 12, 0, 0, 0, 0]]]
    assert torch.equal(stack_frames(x, 1), x) and stack_frames(x, 3).shape == (1, 2, 6)
