"""Batches: every row reads as it would alone, and every placeholder finds its own medium."""

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimodal.batch import Batch, Sample, Turn, collate, length_groups, misread
from multimodal.data.packing import IGNORE

# On a busy machine time says nothing.
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

PAD, IMAGE, AUDIO = 0, 100, 101
IDS = {"image": IMAGE, "audio": AUDIO}
sides = pytest.mark.parametrize("pad_left", [False, True])


@dataclass(frozen=True)
class Items:
    """Media laid side by side; `device` is where they were sent."""

    names: tuple[str, ...]
    device: str = "cpu"

    def to(self, device: torch.device | str) -> "Items":
        return Items(self.names, str(device))


class Modality:
    @staticmethod
    def collate(items: list[str]) -> Items:
        return Items(tuple(items))

    @staticmethod
    def span(item: str, placeholder: int) -> list[int]:
        return [placeholder]


MODALITIES = {"image": Modality(), "audio": Modality()}


def batched(*samples: Sample, pad_left: bool = False) -> Batch:
    return collate(samples, modalities=MODALITIES, placeholder_ids=IDS, pad_id=PAD, pad_left=pad_left)


def turn(prompt: list[int], answer: list[int] | None = None, **media: tuple[int, ...]) -> Turn:
    return Turn(prompt, answer or [], media)


def seen(batch: Batch, kind: str, row: int) -> list[tuple[str, int, int]]:
    """For each medium of a row: its name, its group, and the column of its placeholder counted from the row's start."""
    if kind not in batch.media:
        return []
    media = batch.media[kind]
    ids = batch.input_ids[row]
    start = int(batch.attention_mask[row].argmax())
    columns = [int(c) for c in (ids == IDS[kind]).nonzero()[:, 0]]
    joined = zip(media.rows[row], columns, strict=True)
    for (_, group), column in zip(media.rows[row], columns, strict=True):
        assert media.token_group[row, column] == group  # a placeholder looks at its own medium
    return [(media.items.names[position], group, column - start) for (position, group), column in joined]


@sides
def test_several_captions_of_one_picture_share_it(pad_left: bool) -> None:
    captions = tuple(turn([1, IMAGE, 2], [10 + n] * (n + 1), image=(0,)) for n in range(3))
    batch = batched(Sample({"image": ("cat",)}, captions), Sample({"image": ("dog",)}, captions[:1]), pad_left=pad_left)
    assert batch.media["image"].items.names == ("cat", "dog")  # each encoded once
    assert [r[0][0] for r in batch.media["image"].rows] == [0, 0, 0, 1]
    assert [seen(batch, "image", row)[0][0] for row in range(4)] == ["cat"] * 3 + ["dog"]


def test_several_pictures_in_a_row() -> None:
    prompt = [1, IMAGE, IMAGE, 2, 3, IMAGE, 4]
    batch = batched(Sample({"image": ("a", "b", "c")}, (turn(prompt, [5], image=(2, 0, 1)),)))
    assert batch.media["image"].token_group.tolist() == [[0, 1, 1, 1, 1, 2, 2, 2]]
    assert seen(batch, "image", 0) == [("c", 1, 1), ("a", 1, 2), ("b", 2, 5)]


@sides
def test_text_alone_beside_pictures_sees_none(pad_left: bool) -> None:
    batch = batched(
        Sample({}, (turn([1, 2], [3]),)),
        Sample({"image": ("a",)}, (turn([1, IMAGE, 2, 3], [4], image=(0,)),)),
        Sample({"image": ("b",)}, (turn([5], [6]),)),  # a picture that its turn does not mention
        Sample({"image": ("c",)}, (turn([IMAGE], [7], image=(0,)),)),
        pad_left=pad_left,
    )
    media = batch.media["image"]
    assert [[n for n, *_ in seen(batch, "image", row)] for row in range(4)] == [[], ["a"], [], ["c"]]
    assert not media.token_group[[0, 2]].any()


def test_text_alone_has_no_media() -> None:
    assert batched(Sample({}, (turn([1], [2]),)), Sample({"image": ()}, (turn([1], [2]),))).media == {}


def test_kinds_are_apart() -> None:
    media = {"image": ("a",), "audio": ("x", "y")}
    batch = batched(Sample(media, (turn([AUDIO, 1, IMAGE, 2, AUDIO], [3], image=(0,), audio=(0, 1)),)))
    assert batch.media["image"].token_group.tolist() == [[0, 0, 1, 1, 1, 1]]
    assert batch.media["audio"].token_group.tolist() == [[1, 1, 1, 1, 2, 2]]
    assert [n for n, *_ in seen(batch, "audio", 0)] == ["x", "y"]


def test_padding_on_the_right() -> None:
    batch = batched(Sample({}, (turn([1, 2], [3, 4]), turn([5, 6], [7]))))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch.targets.tolist() == [[IGNORE, 3, 4, IGNORE], [IGNORE, 7, IGNORE, IGNORE]]


def test_padding_on_the_left() -> None:
    media = {"image": ("a", "b")}
    batch = batched(
        Sample(media, (turn([1, 2, 3, IMAGE, 4], image=(0,)), turn([5, IMAGE, 6], image=(1,)))), pad_left=True
    )
    assert batch.input_ids.tolist() == [[1, 2, 3, IMAGE, 4], [PAD, PAD, 5, IMAGE, 6]]
    assert batch.attention_mask.tolist() == [[1] * 5, [0, 0, 1, 1, 1]]
    assert (batch.targets == IGNORE).all()
    assert batch.media["image"].token_group.tolist() == [[0, 0, 0, 1, 1]] * 2


@st.composite
def some_samples(draw: st.DrawFn) -> list[Sample]:
    """Samples of up to three pictures and two recordings, with turns that name any of them anywhere."""
    samples = []
    for n in range(draw(st.integers(1, 3))):
        counts = {"image": draw(st.integers(0, 3)), "audio": draw(st.integers(0, 2))}
        media = {kind: tuple(f"{kind} {i} of {n}" for i in range(count)) for kind, count in counts.items()}
        choices = [st.integers(1, 99)] + [st.just(IDS[kind]) for kind, count in counts.items() if count]
        turns = []
        for _ in range(draw(st.integers(0 if n else 1, 3))):
            prompt = draw(st.lists(st.one_of(choices), max_size=8))
            named = {
                kind: tuple(draw(st.integers(0, counts[kind] - 1)) for i in prompt if i == IDS[kind]) for kind in IDS
            }
            turns.append(Turn(prompt, draw(st.lists(st.integers(1, 99), min_size=1, max_size=4)), named))
        samples.append(Sample(media, tuple(turns)))
    return samples


@sides
@quick
@given(some_samples())
def test_a_row_is_the_same_in_a_batch_as_alone(pad_left: bool, samples: list[Sample]) -> None:
    batch = batched(*samples, pad_left=pad_left)
    turns = [(sample, turn) for sample in samples for turn in sample.turns]
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.targets.shape
    assert len(batch.input_ids) == len(turns)
    for row, (sample, one) in enumerate(turns):
        alone = batched(Sample(sample.media, (one,)), pad_left=pad_left)
        own = batch.attention_mask[row].bool()
        size = len(one.prompt) + len(one.answer)
        assert own.sum() == size and own[-size:].all() if pad_left else own[:size].all()
        assert (batch.input_ids[row][~own] == PAD).all() and (batch.targets[row][~own] == IGNORE).all()
        assert torch.equal(batch.input_ids[row][own], alone.input_ids[0])
        assert torch.equal(batch.targets[row][own], alone.targets[0])
        for kind in IDS:
            assert seen(batch, kind, row) == seen(alone, kind, 0)
            assert [n for n, *_ in seen(batch, kind, row)] == [sample.media[kind][p] for p in one.media[kind]]
            if kind in alone.media:
                assert torch.equal(batch.media[kind].token_group[row][own], alone.media[kind].token_group[0])
                if pad_left:
                    assert not batch.media[kind].token_group[row][~own].any()


@quick
@given(st.lists(st.integers(1, 99), max_size=4), st.lists(st.integers(1, 99), min_size=1, max_size=4))
def test_a_target_is_the_next_token_where_that_is_the_answer(prompt: list[int], answer: list[int]) -> None:
    targets = batched(Sample({}, (turn(prompt, answer),))).targets[0].tolist()
    whole = prompt + answer
    counted = [(t, i) for t, i in enumerate(targets) if i != IGNORE]
    assert counted == [(t - 1, whole[t]) for t in range(max(len(prompt), 1), len(whole))]


def test_what_is_read_wrong_is_a_share_of_the_answer_and_what_is_learnt_stays() -> None:
    right = Turn([1, 2], [*range(3, 2003)], {}, teacher=[1, 2, 3])
    rng = random.Random(0)
    wrong = misread(right, share=0.25, tokens=100_000, rng=rng)
    assert wrong.misread is not None and replace(wrong, misread=None) == right
    swapped = [read != token for read, token in zip(wrong.misread, right.answer, strict=True)]
    assert 0.22 < sum(swapped) / len(swapped) < 0.28 and max(wrong.misread) < 100_000
    before, after = (batched(Sample({}, (turn,))) for turn in (right, wrong))
    assert torch.equal(before.targets, after.targets)
    assert after.input_ids.tolist() == [[*right.prompt, *wrong.misread]]
    assert before.teacher is not None and after.teacher is not None
    assert torch.equal(before.teacher.input_ids, after.teacher.input_ids)  # the teacher reads it as it is


def test_nothing_is_drawn_where_nothing_is_read_wrong() -> None:
    right, rng = Turn([1], [2, 3], {}), random.Random(0)
    assert misread(right, share=0.0, tokens=9, rng=rng) is right
    assert rng.random() == random.Random(0).random()


@sides
@pytest.mark.parametrize(
    ("prompt", "positions"),
    [
        ([1, IMAGE], ()),
        ([1, IMAGE], (0, 1)),
        ([1, IMAGE, IMAGE], (0,)),
        ([1], (0,)),
        ([1, IMAGE, IMAGE], (0, 2)),  # would be the picture of the next sample
        ([1, IMAGE], (-1,)),
    ],
)
def test_media_must_be_as_many_as_placeholders_and_there(
    pad_left: bool, prompt: list[int], positions: tuple[int, ...]
) -> None:
    wrong = Sample({"image": ("a", "b")}, (turn(prompt, [2], image=positions),))
    right = Sample({"image": ("c",)}, (turn([IMAGE], [2], image=(0,)),))
    with pytest.raises(ValueError, match="image"):
        batched(wrong, right, pad_left=pad_left)


def test_placeholders_without_any_medium_in_the_batch() -> None:
    with pytest.raises(ValueError, match="image"):
        batched(Sample({}, (turn([1, IMAGE], [2]),)))


def test_to_moves_all_of_it() -> None:
    media: dict[str, tuple[Any, ...]] = {"image": ("a",)}
    batch = batched(Sample(media, (turn([1, IMAGE], [2], image=(0,)),))).to("meta")
    tensors = (batch.input_ids, batch.attention_mask, batch.targets, batch.media["image"].token_group)
    assert all(t.device.type == "meta" for t in tensors)
    assert batch.media["image"].items == Items(("a",), "meta")
    assert batch.media["image"].rows == (((0, 1),),)


@quick
@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 400))
def test_length_groups_hold_every_row_once_and_save_padding(lengths: list[int], least: int) -> None:
    groups = length_groups(lengths, least=least)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    ordered = [lengths[row] for group in groups for row in group]
    assert ordered == sorted(ordered)
    padded = sum(len(group) * lengths[group[-1]] for group in groups)
    assert padded <= len(lengths) * max(lengths) - least * (len(groups) - 1)


def test_rows_of_one_length_stay_together() -> None:
    assert length_groups([7] * 300, least=1) == [list(range(300))]
    assert length_groups([40, 5, 40, 5], least=70) == [[1, 3], [0, 2]]
    assert length_groups([40, 5, 40, 5], least=71) == [[1, 3, 0, 2]]


@sides
def test_answers_stand_behind_the_prompts_that_teach_them(pad_left: bool) -> None:
    turns = (
        Turn([1, IMAGE, 2], [3, 4], {"image": (0,)}, teacher=[5]),
        turn([6], [7]),
        Turn([8], [9], {}, teacher=[10, 11, 12]),
        Turn([13], [], {}, teacher=[14]),
    )
    batch = batched(Sample({"image": ("a",)}, turns), pad_left=pad_left).to("cpu")
    assert batch.taught == (0, 2) and batch.teacher is not None and not batch.teacher.media
    rows = zip(batch.teacher.input_ids, batch.teacher.attention_mask.bool(), strict=True)
    assert [ids[own].tolist() for ids, own in rows] == [[5, 3, 4], [10, 11, 12, 9]]
    for row, text in zip(batch.taught, batch.teacher.targets, strict=True):
        assert torch.equal(text[text != IGNORE], batch.targets[row][batch.targets[row] != IGNORE])
    alone = batched(Sample({}, turns[1:2]))
    assert alone.taught == () and alone.teacher is None
