"""The grammar of the GRID corpus: six words a sentence, one for each slot (Cooke et al. 2006)."""

import random

SLOTS = {
    "command": ("bin", "lay", "place", "set"),
    "colour": ("blue", "green", "red", "white"),
    "preposition": ("at", "by", "in", "with"),
    "letter": tuple("abcdefghijklmnopqrstuvxyz"),  # no w: the only name of three syllables
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "adverb": ("again", "now", "please", "soon"),
}


def grammar_sentence(rng: random.Random) -> str:
    """A sentence of the grammar, each word equally likely: one of 64,000."""
    return " ".join(rng.choice(words) for words in SLOTS.values())
