"""What is said in other languages: known words, translations that follow from it, nothing held out in training."""

import builtins
import random
from typing import Any

import pytest

from multimodal.data.text import REPEAT_PROMPT, TRANSLATE_PROMPT, spoken_form
from multimodal.errors import UserError
from speech.foreign_texts import (
    SOURCE_LANGUAGES,
    draw_foreign,
    foreign_and_english,
    foreign_number,
    foreign_saying,
)
from speech.spoken_texts import is_held_out

pytest.importorskip("num2words", reason="num2words is not installed (pip install num2words)")


def test_numbers_in_four_languages() -> None:
    known = {
        "German": "zweiundvierzig",
        "French": "quarante-deux",
        "Spanish": "cuarenta y dos",
        "Italian": "quarantadue",
    }
    assert {language: foreign_number(42, language=language) for language in SOURCE_LANGUAGES} == known
    assert foreign_number(3, language="German", ordinal=True) == "dritte"


@pytest.mark.parametrize("language", SOURCE_LANGUAGES)
def test_translations_follow_from_the_source_alone(language: str) -> None:
    rng = random.Random(0)
    pairs = {foreign_and_english(rng, language=language) for _ in range(2000)}
    assert len({spoken_form(source) for source, _ in pairs}) == len(pairs) > 1000
    assert all(truth == spoken_form(truth) for _, truth in pairs)
    assert not any(character.isdigit() for pair in pairs for text in pair for character in text)


def test_held_out_translations_are_drawn_by_themselves() -> None:
    rng = random.Random(0)
    for held_out in (True, False):
        drawn = [draw_foreign(rng, language="French", held_out=held_out) for _ in range(50)]
        assert {is_held_out(truth) for _, truth in drawn} == {held_out}


def test_sayings_repeat_or_translate() -> None:
    rng = random.Random(0)
    sayings = [foreign_saying(rng) for _ in range(300)]
    translated = [answer for prompt, _, answer in sayings if prompt == TRANSLATE_PROMPT.format(language="English")]
    repeated = [(prompt, asked == answer) for prompt, asked, answer in sayings if prompt.startswith("Repeat")]
    assert len(translated) + len(repeated) == len(sayings) and 150 < len(translated) < 250
    assert set(repeated) == {(REPEAT_PROMPT.format(language=language), True) for language in SOURCE_LANGUAGES}
    assert not any(map(is_held_out, translated)) and {word for text in translated for word in text.split()} > {"ninety"}


def test_what_there_is_no_text_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="expected one of German"):
        foreign_and_english(random.Random(0), language="Dutch")
    imported = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name == "num2words":
            raise ImportError(name)
        return imported(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install num2words"):
        foreign_number(123_456, language="German")
