from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal.errors import UserError
from multimodal.placement import cross_attention_layers, every_nth


def test_released_placements():
    assert cross_attention_layers(32, 8) == [3, 7, 11, 15, 19, 23, 27, 31]
    merged = [layer + i for i, layer in enumerate(cross_attention_layers(80, 20))]
    assert merged == list(range(3, 99, 5))


def test_as_many_as_asked_for_where_they_do_not_divide_the_layers():
    assert cross_attention_layers(126, 31) == list(range(5, 126, 4))  # 405B: 31 blocks are its 98.8 billion parameters
    assert cross_attention_layers(6, 4) == [2, 3, 4, 5]


@given(st.integers(1, 200), st.data())
def test_evenly_spaced_back_from_the_last_layer(n_layers: int, data: st.DataObject):
    n_cross = data.draw(st.integers(1, n_layers))
    layers = cross_attention_layers(n_layers, n_cross)
    assert layers[-1] == n_layers - 1 and layers[0] >= 0 and len(layers) == n_cross
    assert len({b - a for a, b in pairwise(layers)}) <= 1


@pytest.mark.parametrize("n_cross", [0, 5])
def test_impossible_numbers_are_refused(n_cross: int):
    with pytest.raises(UserError, match="expected 1 to 4"):
        cross_attention_layers(4, n_cross)


def test_every_nth_counts_back_from_the_last() -> None:
    assert every_nth(cross_attention_layers(32, 8), 4) == [15, 31]
    assert every_nth(cross_attention_layers(80, 20), 4) == [15, 31, 47, 63, 79]
    assert every_nth([1, 3, 5], 4) == [5] and every_nth([1, 3, 5], 1) == [1, 3, 5] and every_nth([1, 3, 5], 2) == [1, 5]
    with pytest.raises(UserError, match="every 0"):
        every_nth([1], 0)
