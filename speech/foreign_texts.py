"""What is said in other languages: numbers, times and dates in words, with their English translations."""

import random
from functools import cache

from multimodal.data.text import REPEAT_PROMPT, TRANSLATE_PROMPT, spoken_form
from multimodal.errors import UserError
from speech.spoken import LANGUAGES
from speech.spoken_texts import in_words, is_held_out, ordinal_in_words

# fmt: off
_MONTHS = {
    "English": ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
                "November", "December"),
    "German": ("Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober",
               "November", "Dezember"),
    "French": ("janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre",
               "novembre", "décembre"),
    "Spanish": ("enero", "febrero", "marzo", "abril", "mayo", "junio", "julio", "agosto", "septiembre", "octubre",
                "noviembre", "diciembre"),
    "Italian": ("gennaio", "febbraio", "marzo", "aprile", "maggio", "giugno", "luglio", "agosto", "settembre",
                "ottobre", "novembre", "dicembre"),
}
# fmt: on
SOURCE_LANGUAGES = tuple(language for language in LANGUAGES if language != "English")
_TIME = {
    "German": "{hour} Uhr {minute}",
    "French": "{hour} heures {minute}",
    "Spanish": "las {hour} y {minute}",
    "Italian": "le {hour} e {minute}",
}
_DATE = {
    "German": "der {day} {month}",
    "French": "le {day} {month}",
    "Spanish": "el {day} de {month}",
    "Italian": "il {day} {month}",
}


@cache
def foreign_number(number: int, *, language: str, ordinal: bool = False) -> str:
    """A number in the words of one of `SOURCE_LANGUAGES`, as num2words writes them.

    Raises:
        UserError: num2words is not installed.

    Example:
        >>> foreign_number(42, language="German")
        'zweiundvierzig'
    """
    try:
        from num2words import num2words
    except ImportError:
        raise UserError(
            "num2words is not installed; numbers of other languages need it: pip install num2words"
        ) from None
    return num2words(number, lang=LANGUAGES[language], to="ordinal" if ordinal else "cardinal")


def foreign_and_english(rng: random.Random, *, language: str) -> tuple[str, str]:
    """What to say in `language` and its English translation, both in words.

    Raises:
        UserError: another language than `SOURCE_LANGUAGES`, or num2words is not installed.
    """
    if language not in SOURCE_LANGUAGES:
        raise UserError(f"translation from {language!r}: expected one of {', '.join(SOURCE_LANGUAGES)}")

    def words(number: int, *, ordinal: bool = False) -> str:
        return foreign_number(number, language=language, ordinal=ordinal)

    kind = rng.random()
    if kind < 0.5:
        number = rng.randrange(10 ** rng.randint(1, 4))
        return words(number), in_words(number)
    if kind < 0.75:
        hour, minute = rng.randint(2, 23), rng.randint(10, 59)
        return _TIME[language].format(hour=words(hour), minute=words(minute)), f"{in_words(hour)} {in_words(minute)}"
    # The first of a month has its own word in some languages; German alone counts the others with ordinals.
    day, month = rng.randint(2, 28), rng.randrange(12)
    said = words(day, ordinal=language == "German")
    source = _DATE[language].format(day=said, month=_MONTHS[language][month])
    return source, f"the {ordinal_in_words(day)} of {_MONTHS['English'][month].lower()}"


def draw_foreign(rng: random.Random, *, language: str, held_out: bool) -> tuple[str, str]:
    """The first pair of `foreign_and_english` whose translation is, or is not, held out; raises as it does."""
    while True:
        source, truth = foreign_and_english(rng, language=language)
        if is_held_out(truth) == held_out:
            return source, truth


def foreign_saying(rng: random.Random, *, held_out: bool = False) -> tuple[str, str, str]:
    """A prompt, something in another language, and the answer: twice in three its translation, else the same again."""
    language = rng.choice(SOURCE_LANGUAGES)
    source, truth = draw_foreign(rng, language=language, held_out=held_out)
    source = spoken_form(source)
    if rng.random() < 2 / 3:
        return TRANSLATE_PROMPT.format(language="English"), source, truth
    return REPEAT_PROMPT.format(language=language), source, source
