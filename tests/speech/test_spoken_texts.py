"""Texts to be spoken: numbers in words are right, held-out texts are not learnt."""

import random
from itertools import pairwise

import pytest

from multimodal.data.text import spoken_form
from multimodal.errors import UserError
from speech.spoken_texts import (
    digits_in_a_row,
    in_words,
    is_held_out,
    number_phrase,
    ordinal_in_words,
    piece_of,
    short_prose,
    write,
)


def test_numbers_in_words() -> None:
    known = {
        0: "zero",
        13: "thirteen",
        40: "forty",
        105: "one hundred five",
        1742: "one thousand seven hundred forty two",
    }
    assert {number: in_words(number) for number in known} == known
    assert len({in_words(number) for number in range(10_000)}) == 10_000
    ordinals = {1: "first", 12: "twelfth", 20: "twentieth", 22: "twenty second", 29: "twenty ninth", 4: "fourth"}
    assert {number: ordinal_in_words(number) for number in ordinals} == ordinals
    with pytest.raises(ValueError, match="expected 0 to"):
        in_words(-1)


def test_digits_in_a_row_come_again() -> None:
    rng = random.Random(0)
    rows = [digits_in_a_row(rng).split() for _ in range(200)]
    assert {word for row in rows for word in row} == {in_words(number) for number in range(10)}
    assert {len(row) for row in rows} == set(range(1, 9))
    assert any(a == b for row in rows for a, b in pairwise(row))


def test_pieces_are_words_in_a_row_of_texts_that_training_hears() -> None:
    texts: list[str] = []

    def writer(rng: random.Random) -> str:
        texts.append(short_prose(rng))
        return texts[-1]

    for seed in range(50):
        piece = piece_of(writer)(random.Random(seed))
        assert f" {piece} " in f" {texts[-1]} " and not is_held_out(texts[-1])
    lengths = {len(piece_of(short_prose)(random.Random(seed)).split()) for seed in range(50)}
    assert lengths == {1, 2, 3, 4}


@pytest.mark.parametrize("writer", [number_phrase, short_prose])
def test_texts_are_in_spoken_form_and_split_by_their_letters(writer: object) -> None:
    rng = random.Random(0)
    learnt = {write(writer, rng, held_out=False) for _ in range(300)}  # type: ignore[arg-type]
    kept = {write(writer, rng, held_out=True) for _ in range(30)}  # type: ignore[arg-type]
    assert not learnt & kept and all(text == spoken_form(text) for text in learnt | kept)
    assert len(learnt) > 100 and all(map(is_held_out, kept))


def test_what_there_is_no_text_for_is_refused() -> None:
    with pytest.raises(UserError, match="no text"):
        write(lambda rng: "always this", random.Random(0), held_out=not is_held_out("always this"))
