"""BLEU and chrF: their ends, what they forgive, and that they are sacrebleu's own."""

import pytest
import sacrebleu

from multimodal.errors import UserError
from speech.translation_scores import bleu, chrf

TRUTHS = ["the house stands at the end of the road", "it will rain tomorrow in the north"]


def test_a_perfect_translation_has_100_and_nothing_said_0() -> None:
    assert bleu(TRUTHS, TRUTHS) == pytest.approx(100) and chrf(TRUTHS, TRUTHS) == pytest.approx(100)
    assert bleu(["", ""], TRUTHS) == 0 and chrf(["", ""], TRUTHS) == 0


def test_case_and_marks_are_no_part_of_the_score() -> None:
    written = ["The house stands at the end of the road.", "It will rain tomorrow, in the North!"]
    assert bleu(written, TRUTHS) == bleu(TRUTHS, written) == pytest.approx(100)


def test_bleu_minds_the_order_of_words_and_chrf_forgives_an_ending() -> None:
    turned = [" ".join(reversed(text.split())) for text in TRUTHS]
    assert bleu(turned, TRUTHS) < 20 < chrf(turned, TRUTHS)
    endings = ["the houses stand at the ends of the roads", "it will be raining tomorrow in the northern"]
    assert bleu(endings, TRUTHS) < 50 < chrf(endings, TRUTHS)


def test_spoken_forms_get_what_sacrebleu_gives() -> None:
    said = ["the house is at the end of a road", "it rains tomorrow in the north"]
    assert bleu(said, TRUTHS) == sacrebleu.corpus_bleu(said, [TRUTHS]).score
    assert chrf(said, TRUTHS) == sacrebleu.corpus_chrf(said, [TRUTHS]).score


@pytest.mark.parametrize("score", [bleu, chrf])
def test_no_words_no_score(score) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="no word in any reference"):
        score(["a"], [" ... "])
    with pytest.raises(UserError, match="1 predictions for 2"):
        score(["a"], ["b", "c"])
