"""Sentences of the GRID grammar."""

import random

from multimodal.data.grid_grammar import SLOTS, grammar_sentence


def test_a_sentence_has_a_word_of_each_slot() -> None:
    rng = random.Random(0)
    sentences = [grammar_sentence(rng).split() for _ in range(500)]
    for words, slot in zip(zip(*sentences, strict=True), SLOTS.values(), strict=True):
        assert set(words) == set(slot)
