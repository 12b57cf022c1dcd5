from dataclasses import replace

import torch

from multimodal.memory import AdapterMemory, CrossMemory, token_groups


def memory() -> AdapterMemory:
    """Two rows: text, image, text, two images, text; and a row with one image whose last memory token is padding."""
    placeholders = torch.tensor([[0, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0]], dtype=torch.bool)
    kv = torch.arange(2 * 1 * 4 * 2.0).view(2, 1, 4, 2)
    groups = torch.tensor([[1, 2, 2, 2], [1, 1, 1, -1]])
    return AdapterMemory({3: kv}, {3: kv + 1}, groups, token_groups(placeholders))


def test_groups_begin_at_placeholders_and_consecutive_ones_share():
    assert memory().token_group.tolist() == [[0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 1, 1]]
    leading = torch.tensor([[True, True, False]])
    assert token_groups(leading).tolist() == [[1, 1, 1]]


def test_a_position_sees_its_own_group_and_nothing_else():
    seen = memory().visible(torch.arange(6))
    expected = [
        [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]],
    ]
    assert seen.mask_BTS.int().tolist() == expected
    assert seen.row_valid_BT.int().tolist() == [[0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]


def test_generated_positions_inherit_the_last_prompt_column():
    whole = memory().visible(torch.arange(9))
    for column in range(5, 9):
        assert torch.equal(whole.mask_BTS[:, column], whole.mask_BTS[:, 5])
    step = memory().visible(torch.tensor([7]))
    assert torch.equal(step.mask_BTS, whole.mask_BTS[:, 7:8])


def test_what_comes_after_the_prompt_shares_one_visibility():
    late = replace(memory(), memory_column=torch.tensor([[1, 3, 4, 4], [2, 2, 2, 2]]))
    for one in (memory(), late):
        seen, step = one.afterwards, one.visible(torch.tensor([8]))
        assert torch.equal(seen.mask_BTS, step.mask_BTS) and torch.equal(seen.row_valid_BT, step.row_valid_BT)
        assert seen.readers is None and one.afterwards is seen
    one = memory()
    alone = AdapterMemory(one.keys, one.values, torch.ones(2, 4).long(), torch.ones(2, 3).long()).afterwards
    assert alone.readers is not None and alone.readers.unmasked and alone.readers.first == 0
    assert CrossMemory({"image": memory()}).prompt_length == 6


def test_a_group_without_memory_tokens_sees_nothing():
    kv = torch.zeros(1, 1, 2, 2)
    seen = AdapterMemory({0: kv}, {0: kv}, torch.tensor([[1, -1]]), torch.tensor([[1, 2, 2]])).visible(torch.arange(3))
    assert seen.row_valid_BT.tolist() == [[True, False, False]]


def test_expand_repeats_each_row_in_place():
    one = CrossMemory({"image": memory()})
    assert one.batch_size == 2
    many, image = one.expand(3), memory()
    assert many.batch_size == 6
    expanded = many.by_adapter["image"]
    for row in range(6):
        assert torch.equal(expanded.keys[3][row], image.keys[3][row // 3])
        assert torch.equal(expanded.values[3][row], image.values[3][row // 3])
        assert torch.equal(expanded.memory_group[row], image.memory_group[row // 3])
        assert torch.equal(expanded.token_group[row], image.token_group[row // 3])


def test_rows_are_picked_in_order_with_their_first_columns():
    picked = CrossMemory({"image": memory()}).rows(torch.tensor([1, 0]), 4)
    image, whole = picked.by_adapter["image"], memory()
    assert picked.batch_size == 2
    assert torch.equal(image.keys[3], whole.keys[3].flip(0)) and torch.equal(image.values[3], whole.values[3].flip(0))
    assert torch.equal(image.memory_group, whole.memory_group.flip(0))
    assert torch.equal(image.token_group, whole.token_group.flip(0)[:, :4])


def test_rows_that_see_nothing_take_the_other_memory() -> None:
    def one(value: float, token_group: list[list[int]]) -> AdapterMemory:
        full = torch.full((2, 1, 2, 3), value)
        return AdapterMemory({0: full}, {0: full}, torch.ones(2, 2, dtype=torch.long), torch.tensor(token_group))

    joined = one(1.0, [[0, 1], [0, 0]]).or_else(one(2.0, [[1, 1], [1, 1]]))
    mask_BTS = joined.visible(torch.arange(2)).mask_BTS
    assert mask_BTS[0].tolist() == [[False] * 4, [True, True, False, False]]
    assert joined.keys[0][:, 0, :, 0].tolist() == [[1, 1, 2, 2]] * 2
    assert mask_BTS[1].tolist() == [[False, False, True, True]] * 2


def test_memory_may_be_seen_from_a_column_of_its_own_on() -> None:
    late = replace(memory(), memory_column=torch.tensor([[1, 3, 4, 4], [2, 2, 2, 0]]))
    mask_BTS, whole_BTS = late.visible(torch.arange(8)).mask_BTS, memory().visible(torch.arange(8)).mask_BTS
    assert mask_BTS[0, 3].tolist() == [False, True, False, False], "the first of two pictures, at its own placeholder"
    changed = (mask_BTS != whole_BTS).nonzero().tolist()
    assert changed == [[0, 3, 2], [0, 3, 3]]
    for image in (late.expand(2), late.rows(torch.tensor([0, 0, 1, 1]), 6)):
        assert torch.equal(image.visible(torch.arange(8)).mask_BTS, mask_BTS.repeat_interleave(2, 0))
    blind = replace(memory(), token_group=torch.zeros(2, 6, dtype=torch.long))
    for joined in (blind.or_else(late), late.or_else(blind)):
        seen = joined.visible(torch.arange(8)).mask_BTS
        assert torch.equal(seen[..., 4:] | seen[..., :4], mask_BTS)
