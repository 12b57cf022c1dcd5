"""What the built-in voices say in English: number phrases and short prose.

Every text is a pure function of its generator. One in ten, chosen by its own letters, is held out from training.
"""

import random
import zlib

from multimodal.data.text import Writer
from multimodal.data.word_times import MOST_WORDS
from multimodal.errors import UserError

# fmt: off
_UP_TO_NINETEEN = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}
_PEOPLE = (
    "the old man", "my sister", "the farmer", "a young girl", "the king", "our teacher", "the little boy",
    "her brother", "the sailor", "an old friend", "the doctor", "my mother", "the queen", "a tall man",
)
_DEEDS = (
    "walked to the river", "found a silver key", "opened the green door", "lost his way", "sat under the tree",
    "ran down the hill", "wrote a long letter", "cooked some fish", "sang a quiet song", "looked at the moon",
    "climbed the high wall", "gave me a book", "heard a strange noise", "built a small house", "fed the white horse",
    "called the dog", "bought some bread", "waited by the gate", "saw a ship", "told us a story",
)
_TIMES = (
    "in the morning", "last night", "before dinner", "after the rain", "on sunday", "when the sun came up",
    "in the cold winter", "at noon", "long ago", "without a word", "all alone", "once more",
)
# fmt: on


def in_words(number: int) -> str:
    """A number in English words, without hyphens and without "and".

    Raises:
        ValueError: below 0 or beyond 999,999.

    Example:
        >>> in_words(1742)
        'one thousand seven hundred forty two'
    """
    if not 0 <= number < 1_000_000:
        raise ValueError(f"{number}: expected 0 to 999,999")
    if number < 20:
        return _UP_TO_NINETEEN[number]
    for unit, name in ((1000, "thousand"), (100, "hundred")):
        if number >= unit:
            rest = f" {in_words(number % unit)}" if number % unit else ""
            return f"{in_words(number // unit)} {name}{rest}"
    return _TENS[number // 10] + (f" {_UP_TO_NINETEEN[number % 10]}" if number % 10 else "")


def ordinal_in_words(number: int) -> str:
    """ "first", "twentieth", "twenty first" ...; raises as `in_words`."""
    *before, last = in_words(number).split()
    last = _ORDINALS.get(last) or (f"{last[:-1]}ie" if last.endswith("y") else last) + "th"
    return " ".join([*before, last])


def number_phrase(rng: random.Random) -> str:
    """A number as people say it: by itself, digit by digit, a price, a time, a room."""
    digits = [_UP_TO_NINETEEN[rng.randrange(10)] for _ in range(rng.randint(2, 7))]
    number = in_words(rng.randrange(10 ** rng.randint(1, 4)))
    forms = (
        number,
        " ".join(digits),
        f"call {' '.join(digits)}",
        f"it costs {number} dollars",
        f"room {in_words(rng.randint(1, 999))}",
        f"the train leaves at {in_words(rng.randint(1, 12))} {in_words(rng.randint(10, 59))}",
        f"page {number} of the book",
        f"there were {in_words(rng.randint(2, 99))} people and {in_words(rng.randint(2, 20))} dogs",
    )
    return rng.choice(forms)


def digits_in_a_row(rng: random.Random) -> str:
    """One to eight digits, often the same again."""
    pool = rng.choices(_UP_TO_NINETEEN[:10], k=rng.randint(1, 10))
    return " ".join(rng.choices(pool, k=rng.randint(1, 8)))


def short_prose(rng: random.Random) -> str:
    """Somebody does something, and perhaps somebody else does something too."""
    first, second = rng.sample(_PEOPLE, 2)
    deed, other = rng.sample(_DEEDS, 2)
    forms = (
        f"{first} {deed} {rng.choice(_TIMES)}",
        f"{rng.choice(_TIMES)} {first} {deed}",
        f"{first} {deed} and {second} {other}",
        f"{first} {deed}",
    )
    return rng.choice(forms)


def is_held_out(text: str) -> bool:
    """Whether a text is one of the tenth that training never hears. Single words never are: nothing else says how
    another language calls a zero.
    """
    return " " in text and zlib.crc32(text.encode()) % 10 == 0


def write(writer: Writer, rng: random.Random, *, held_out: bool) -> str:
    """The first text that is, or is not, held out.

    Raises:
        UserError: the writer has too few texts.
    """
    for _ in range(1000):
        text = writer(rng)
        if is_held_out(text) == held_out:
            return text
    raise UserError(f"built-in sentences: no text {'for tests' if held_out else 'to learn'} among 1000; expected more")


def piece_of(writer: Writer) -> Writer:
    """A writer of one to four words in a row, out of a text that is not held out."""

    def piece(rng: random.Random) -> str:
        words = write(writer, rng, held_out=False).split()
        length = rng.randint(1, min(MOST_WORDS, len(words)))
        first = rng.randrange(len(words) - length + 1)
        return " ".join(words[first : first + length])

    return piece
