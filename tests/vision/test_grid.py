"""Parts of GRID's clips: each is asked about the words that are spoken in it, and no others."""

from pathlib import Path

import pytest

from multimodal.data.word_times import MARGIN_SECONDS
from multimodal.errors import UserError
from vision.clip_question import QuestionedClip
from vision.grid import SENTENCE, grid_cuttings, grid_questions

SPOKEN = "bin blue at a two now"
TIMES = {"a": [(word, 0.3 * i, 0.3 * i + 0.2) for i, word in enumerate(SPOKEN.split())]}
CLIP = QuestionedClip(Path("a.mp4"), grid_questions(SPOKEN), "a")


def test_a_part_is_asked_about_its_own_words() -> None:
    made = grid_cuttings([CLIP], TIMES, count=80, seed=0, most=4)
    assert made == grid_cuttings([CLIP], TIMES, count=80, seed=0, most=4) and len({part.name for part in made}) > 10
    assert {len(part.questions) for part in made} == {2, 3, 4, 5}
    for part in made:
        *words, whole = part.questions
        assert whole.question == SENTENCE and whole.answer == " ".join(word.answer for word in words)
        assert all(word in CLIP.questions for word in words)
        first, last = (next(t for t in TIMES["a"] if t[0] == word.answer) for word in (words[0], words[-1]))
        assert part.between == pytest.approx((max(0.0, first[1] - MARGIN_SECONDS), last[2] + MARGIN_SECONDS))


def test_parts_have_no_more_words_than_wanted() -> None:
    made = grid_cuttings([CLIP], TIMES, count=40, seed=0, most=1)
    assert {len(part.questions) for part in made} == {2} and len({part.questions[0] for part in made}) == 6


def test_without_word_times_there_are_no_parts() -> None:
    with pytest.raises(UserError, match="none of 1 recordings has word times"):
        grid_cuttings([CLIP], {}, count=1, seed=0, most=4)
