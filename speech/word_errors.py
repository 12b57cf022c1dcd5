"""Word and character error rates by jiwer, after the one normalisation that fits every set here.

Whisper's normaliser is no choice: it merges spoken digits ("six two" -> "62"), and one wrong digit becomes one wrong
word of two.
"""

from collections.abc import Sequence

import jiwer

from multimodal.data.text import spoken_form
from multimodal.errors import UserError
from multimodal.report import Word


def spoken_pairs(predictions: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[str]]:
    """Both in spoken form, as every score of speech compares them.

    Raises:
        UserError: not one prediction for each reference, or no word in any reference.
    """
    if len(predictions) != len(references):
        raise UserError(f"speech score: {len(predictions)} predictions for {len(references)} references")
    truths = [spoken_form(text) for text in references]
    if not any(truths):
        raise UserError("speech score: no word in any reference; expected transcripts")
    return [spoken_form(text) for text in predictions], truths


def word_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Wrong, missing and extra words over the words of all references; above 1 where more is said than was there.

    Raises:
        UserError: not one prediction for each reference, or no word in any reference.
    """
    said, truths = spoken_pairs(predictions, references)
    return float(jiwer.wer(reference=truths, hypothesis=said))


def character_error_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The same of characters, spaces included; raises as `word_error_rate`."""
    said, truths = spoken_pairs(predictions, references)
    return float(jiwer.cer(reference=truths, hypothesis=said))


def exact_rate(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of predictions equal to the reference in spoken form; raises as `word_error_rate`."""
    said, truths = spoken_pairs(predictions, references)
    return sum(a == b for a, b in zip(said, truths, strict=True)) / len(truths)


def compare_words(prediction: str, reference: str) -> tuple[Word, ...]:
    """The prediction's words, each right, wrong or extra, with the missing ones of the reference in their places."""
    said, truth = spoken_form(prediction), spoken_form(reference)
    if not truth:
        return tuple(Word(word, "extra") for word in said.split())
    aligned = jiwer.process_words(truth, said)
    truths, words = aligned.references[0], aligned.hypotheses[0]
    compared: list[Word] = []
    for chunk in aligned.alignments[0]:
        heard = words[chunk.hyp_start_idx : chunk.hyp_end_idx]
        if chunk.type == "delete":
            compared += [Word(word, "missing") for word in truths[chunk.ref_start_idx : chunk.ref_end_idx]]
        elif chunk.type == "insert":
            compared += [Word(word, "extra") for word in heard]
        else:
            compared += [Word(word, "right" if chunk.type == "equal" else "wrong") for word in heard]
    return tuple(compared)
