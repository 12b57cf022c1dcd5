"""GRID: sentences of a fixed grammar, filmed at the mouth. Lip reading as questions about a clip without sound.

Six words a sentence: command, colour, preposition, letter, digit, adverb (Cooke et al. 2006).
"""

from collections.abc import Sequence
from pathlib import Path

from multimodal.data.grid_grammar import SLOTS
from multimodal.data.tables import read_text, table_cells
from multimodal.data.word_times import WordTimes, draw_pieces
from multimodal.errors import UserError
from vision.clip_question import ClipQuestion, QuestionedClip
from vision.clip_tables import ClipRow

SENTENCE = "What is said?"


def slot_question(slot: str) -> str:
    """What is asked about one of the six words."""
    return f"Which {slot} is spoken?"


def grid_questions(sentence: str) -> tuple[ClipQuestion, ...]:
    """A question for each word of a sentence, and one for the whole.

    Raises:
        ValueError: not a sentence of the grammar.
    """
    words = sentence.split()
    if len(words) != len(SLOTS) or any(word not in SLOTS[slot] for slot, word in zip(SLOTS, words, strict=True)):
        raise ValueError(f"{sentence!r} is not a sentence of GRID")
    asked = [
        ClipQuestion(slot, slot_question(slot), word, options=SLOTS[slot] if len(SLOTS[slot]) == 4 else ())
        for slot, word in zip(SLOTS, words, strict=True)
    ]
    return (*asked, ClipQuestion("sentence", SENTENCE, sentence))


def grid_cuttings(
    clips: Sequence[QuestionedClip], times: WordTimes, *, count: int, seed: int, most: int
) -> list[QuestionedClip]:
    """`count` parts of clips in which one to `most` words are spoken, with the questions about these words.

    Raises:
        UserError: no clip has word times.
    """
    by_name = {clip.name: clip for clip in clips}
    made = []
    for piece in draw_pieces(list(by_name), times, count=count, seed=seed, most=most):
        whole = by_name[piece.name]
        of_words = whole.questions[piece.first : piece.first + len(piece.words)]
        asked = (*of_words, ClipQuestion("sentence", SENTENCE, " ".join(piece.words)))
        name = f"{whole.name}, {piece.label}"
        made.append(QuestionedClip(whole.clip, asked, name, between=(piece.start, piece.end)))
    return made


def grid_rows(path: Path) -> list[ClipRow]:
    """Rows of `transcripts.tsv`: id, split, text; the clips are in `clips/`.

    Raises:
        UserError: a line that has not three cells, or a sentence outside the grammar.
    """
    rows = []
    for line, cells in table_cells(read_text(path, expected="expected the transcripts of GRID"))[1:]:
        where = f"{path}, line {line}"
        if len(cells) != 3:
            raise UserError(f"{where}: {len(cells)} cells; expected id, split and text")
        name, split, text = (cell.strip() for cell in cells)
        try:
            rows += [ClipRow(where, (name,), question, split) for question in grid_questions(text)]
        except ValueError as error:
            raise UserError(f"{where}: {error}; expected {' '.join(SLOTS)}") from None
    return rows
