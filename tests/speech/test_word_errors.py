"""Error rates by hand, and words compared one by one."""

import pytest

from multimodal.errors import UserError
from speech.word_errors import character_error_rate, compare_words, exact_rate, word_error_rate


def test_rates_by_hand() -> None:
    assert word_error_rate(["one two", "three"], ["one too", "three four"]) == pytest.approx(2 / 4)
    assert word_error_rate(["", ""], ["one two", "three"]) == 1
    assert word_error_rate(["a b c d"], ["a"]) == 3
    assert character_error_rate(["ab"], ["abcd"]) == pytest.approx(0.5)
    assert exact_rate(["One, two!", "three"], ["one two", "four"]) == 0.5


def test_the_normaliser_forgives_case_and_marks_but_never_merges_digits() -> None:
    assert word_error_rate(["The O’Neil’s, twenty-one."], ["the o'neil's twenty one"]) == 0
    assert word_error_rate(["six two"], ["six three"]) == 0.5
    assert word_error_rate(["über größe"], ["über grosse"]) == 0.5


def test_words_are_compared_in_place() -> None:
    compared = compare_words("A cat sat down here", "the cat sat here now")
    assert [(word.text, word.kind) for word in compared] == [
        ("a", "wrong"), ("cat", "right"), ("sat", "right"), ("down", "extra"), ("here", "right"), ("now", "missing")
    ]  # fmt: skip
    assert [word.kind for word in compare_words("", "one two")] == ["missing", "missing"]
    assert [word.kind for word in compare_words("one", "")] == ["extra"]


def test_no_words_no_rate() -> None:
    with pytest.raises(UserError, match="no word in any reference"):
        word_error_rate(["a"], [" ... "])
    with pytest.raises(UserError, match="1 predictions for 2"):
        word_error_rate(["a"], ["b", "c"])
