"""Packed rows: full, without leaks, and every document as if it were alone."""

import random
from functools import cache
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multimodal.data.packing import IGNORE, Document, Row, fill_row, pack_rows
from tests.multimodal.tiny_decoders import PAD, VOCAB, tiny_decoder

# On a busy machine time says nothing.
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

LENGTH = 24


@st.composite
def documents(draw: st.DrawFn) -> Document:
    ids = draw(st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=8))
    return Document(ids, draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))


rows_of_documents = st.lists(st.lists(documents(), max_size=3), min_size=1, max_size=3)


def some_rows(seed: int = 0) -> list[Row]:
    """Two rows, one full and one that ends in padding."""
    rng = random.Random(seed)

    def document(size: int) -> Document:
        return Document([rng.randrange(1, VOCAB) for _ in range(size)], [True] * size)

    return [[document(n) for n in (7, 1, 11, 5)], [document(n) for n in (4, 9)]]


@cache
def llama() -> Any:
    return tiny_decoder("llama")


@torch.no_grad()
def packed_logits(rows: list[Row]) -> torch.Tensor:
    batch = pack_rows(rows, length=LENGTH, pad_id=PAD)
    return llama()(input_ids=batch.input_ids, attention_mask=batch.attention_mask(), position_ids=batch.position).logits


def test_a_packed_document_gives_the_logits_that_it_gives_alone() -> None:
    rows = some_rows()
    logits = packed_logits(rows)
    for b, row in enumerate(rows):
        start = 0
        for document in row:
            with torch.no_grad():
                alone = llama()(input_ids=torch.tensor([document.ids])).logits[0]
            packed = logits[b, start : start + len(document.ids)]
            torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
            start += len(document.ids)


@pytest.mark.parametrize("changed", range(4))
def test_a_document_is_seen_by_no_other(changed: int) -> None:
    rows = some_rows()
    before = packed_logits(rows)
    old = rows[0][changed]
    rows[0][changed] = Document([i % (VOCAB - 1) + 1 for i in old.ids], old.counts)
    after = packed_logits(rows)
    start = sum(len(d.ids) for d in rows[0][:changed])
    own = torch.zeros(2, LENGTH, dtype=torch.bool)
    own[0, start : start + len(old.ids)] = True
    assert torch.equal(before[~own], after[~own])
    assert not torch.isclose(before[own], after[own]).all(-1).any()


@quick
@given(rows_of_documents)
def test_layout(rows: list[Row]) -> None:
    batch = pack_rows(rows, length=LENGTH, pad_id=PAD)
    for b, row in enumerate(rows):
        ids, targets, positions = [], [], []
        for document in row:
            ids += document.ids
            pairs = zip(document.ids[1:], document.counts[1:], strict=True)
            targets += [i if counted else IGNORE for i, counted in pairs] + [IGNORE]
            positions += range(len(document.ids))
        rest = LENGTH - len(ids)
        assert batch.input_ids[b].tolist() == ids + [PAD] * rest
        assert batch.targets[b].tolist() == targets + [IGNORE] * rest
        assert batch.position[b].tolist()[: len(ids)] == positions


@quick
@given(rows_of_documents)
def test_a_token_attends_to_its_own_document_up_to_itself(rows: list[Row]) -> None:
    mask = pack_rows(rows, length=LENGTH, pad_id=PAD).attention_mask()
    assert mask.shape == (len(rows), 1, LENGTH, LENGTH) and mask.dtype == torch.bool
    for b, row in enumerate(rows):
        owner = [n for n, document in enumerate(row) for _ in document.ids]
        owner += [-1] * (LENGTH - len(owner))
        may = [[s <= t and owner[s] == owner[t] for s in range(LENGTH)] for t in range(LENGTH)]
        assert mask[b, 0].tolist() == may


def drawn(rng: random.Random) -> Document:
    size = rng.randint(1, 9)
    return Document([rng.randrange(100) for _ in range(size)], [rng.random() < 0.5 for _ in range(size)])


@quick
@given(st.integers(0, 10**6), st.integers(2, 40))
def test_a_row_is_filled_with_documents_of_which_the_last_is_cut(seed: int, length: int) -> None:
    row = fill_row(drawn, random.Random(seed), length=length)
    # One token left over is padding: alone it would have nothing to predict.
    assert sum(len(d.ids) for d in row) in (length - 1, length)
    rng = random.Random(seed)
    whole = [drawn(rng) for _ in row]
    assert row[:-1] == whole[:-1]
    kept = len(row[-1].ids)
    assert 0 < kept <= len(whole[-1].ids)
    assert row[-1] == Document(whole[-1].ids[:kept], whole[-1].counts[:kept])
    if kept < len(whole[-1].ids):
        assert sum(len(d.ids) for d in row) == length


@quick
@given(st.integers(0, 10**6))
def test_a_row_is_a_function_of_its_generator_alone(seed: int) -> None:
    random.seed(0)
    first = fill_row(drawn, random.Random(seed), length=30)
    random.seed(1)
    assert fill_row(drawn, random.Random(seed), length=30) == first


def test_rows_differ() -> None:
    rng = random.Random(0)
    assert fill_row(drawn, rng, length=30) != fill_row(drawn, rng, length=30)


def test_a_row_of_known_documents() -> None:
    number = count(1)

    def next_one(rng: random.Random) -> Document:
        return Document([next(number)] * 4, [False, True, True, True])

    row = fill_row(next_one, random.Random(0), length=10)
    assert [d.ids for d in row] == [[1] * 4, [2] * 4, [3] * 2]
    assert row[-1].counts == [False, True]


def test_flags_and_ids_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="3 ids but 2"):
        Document([1, 2, 3], [True, False])
