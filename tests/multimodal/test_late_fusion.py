"""Late fusion: what each expert says is what its prompt says, and decisions are those of the weighted sum."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from multimodal.answer_scores import answer_log_probs
from multimodal.batch import Sample, Turn
from multimodal.late_fusion import (
    WEIGHTS,
    AnswerExpert,
    Sentence,
    TranscriptExpert,
    Vote,
    choose_weight,
    decode,
    slot_accuracy,
)
from multimodal.model import MultimodalModel
from multimodal.turns import Turns
from tests.tiny_models import TILE, picture, tiny_model

SLOTS = {"colour": ("red", "blue", "green"), "thing": ("fox", "dog")}
MEDIA_SIZES = ((TILE, TILE), (2 * TILE, TILE), (2 * TILE, 2 * TILE))


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """Not to be changed."""
    return tiny_model()


@pytest.fixture(scope="module")
def media(model: MultimodalModel) -> list[dict[str, tuple[Any, ...]]]:
    image: Any = model.modalities["image"]
    return [{"image": (image.prepare(picture(*size, seed=i)),)} for i, size in enumerate(MEDIA_SIZES)]


# ---- experts of a model -------------------------------------------------------------------------------------------


def test_answers_are_scored_with_their_end_of_turn_whatever_was_said_before(model: MultimodalModel, media: Any) -> None:
    turns = Turns(model)
    expert = AnswerExpert(model, iter(media), SLOTS, lambda slot, word: turns(f"Which {slot}?", word), batch_size=2)
    found = expert("thing", [2, 0], [("red",), ("blue",)])
    for row_W, i in zip(found, (2, 0), strict=True):
        asked = tuple(turns("Which thing?", word) for word in SLOTS["thing"])
        assert all(turn.answer[-1] == model.tokenizer.eos_token_id for turn in asked)
        (scores,) = answer_log_probs(model, [Sample(media[i], asked)], batch_size=1)
        torch.testing.assert_close(row_W, scores.log_softmax(0), atol=1e-4, rtol=1e-4)
    assert torch.equal(found, expert("thing", [2, 0], [(), ()]))


@torch.no_grad()
def conditional(model: MultimodalModel, media: Any, prompt: Turn, before: str, word: str) -> float:
    """log p(word | media, prompt, words before) by plain logits."""
    encode = model.tokenizer.encode
    said, text = encode(before, add_special_tokens=False), encode(f"{before} {word}", add_special_tokens=False)
    assert text[: len(said)] == said
    batch = model.collate([Sample(media, (Turn([*prompt.prompt, *said], text[len(said) :], prompt.media),))])
    logits = model.decoder(batch.input_ids, memory=model.memory(batch))[0].log_softmax(-1)
    first = len(prompt.prompt) + len(said)
    return sum(float(logits[first + i - 1, token]) for i, token in enumerate(text[len(said) :]))


def test_a_word_of_a_transcript_is_scored_at_its_place_given_the_words_before(
    model: MultimodalModel, media: Any
) -> None:
    prompt = Turns(model)("Repeat:", None)
    expert = TranscriptExpert(model, media, SLOTS, prompt, batch_size=2)
    found = expert("thing", [1, 1, 0], [("red",), ("blue",), ("blue",)])
    for row_W, i, before in zip(found, (1, 1, 0), ("red", "blue", "blue"), strict=True):
        expected = torch.tensor([conditional(model, media[i], prompt, before, word) for word in SLOTS["thing"]])
        torch.testing.assert_close(row_W, expected.log_softmax(0), atol=1e-4, rtol=1e-4)
    assert len({round(float(row_W[0]), 4) for row_W in found}) == 3


def test_a_beginning_is_scored_once(model: MultimodalModel, media: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expert = TranscriptExpert(model, media, SLOTS, Turns(model)("Repeat:", None), batch_size=2)
    batches: list[int] = []
    collate = model.collate
    monkeypatch.setattr(model, "collate", lambda samples: batches.append(len(samples)) or collate(samples))
    first = expert("thing", [0, 1, 0], [("red",), ("red",), ("red",)])
    assert batches == [2] and torch.equal(first[0], first[2])
    again = expert("thing", [1, 0, 2], [("red",), ("red",), ("red",)])
    assert batches == [2, 1] and torch.equal(again[:2], first[:2].flip(0))


# ---- decisions ----------------------------------------------------------------------------------------------------


class Told:
    """Says what it is told, and remembers what it was asked."""

    def __init__(self, **words: Sequence[Sequence[float]]) -> None:
        self.words = {slot: torch.tensor(scores).log() for slot, scores in words.items()}
        self.asked: list[tuple[str, list[int], list[Sentence]]] = []

    def __call__(self, slot: str, rows: Sequence[int], so_far: Sequence[Sentence]) -> Tensor:
        self.asked.append((slot, list(rows), list(so_far)))
        return self.words[slot][list(rows)]


def pair() -> tuple[Told, Told]:
    """In row 0 one holds red likeliest and the other green, but only blue is likely to both."""
    a = Told(colour=[[0.5, 0.45, 0.05], [0.1, 0.8, 0.1]], thing=[[0.9, 0.1], [0.4, 0.6]])
    b = Told(colour=[[0.05, 0.45, 0.5], [0.2, 0.7, 0.1]], thing=[[0.4, 0.6], [0.8, 0.2]])
    return a, b


def test_alone_each_takes_its_own_best_word_and_the_other_is_not_asked() -> None:
    a, b = pair()
    assert decode(SLOTS, [Vote(a, 1, [0, 1]), Vote(b, 0, [0, 1])]) == [("red", "fox"), ("blue", "dog")]
    assert not b.asked
    assert decode(SLOTS, [Vote(a, 0.0, [0, 1]), Vote(b, 1.0, [0, 1])]) == [("green", "dog"), ("blue", "fox")]


def test_together_they_take_the_best_product() -> None:
    a, b = pair()
    assert decode(SLOTS, [Vote(a, 0.5, [0, 1]), Vote(b, 0.5, [0, 1])]) == [("blue", "fox"), ("blue", "fox")]
    assert a.asked == [("colour", [0, 1], [(), ()]), ("thing", [0, 1], [("blue",), ("blue",)])]


def test_each_looks_at_the_media_that_it_is_given() -> None:
    a, b = pair()
    assert decode(SLOTS, [Vote(a, 1, [1, 0])]) == [("blue", "dog"), ("red", "fox")]
    decode(SLOTS, [Vote(a, 0.5, [0, 1]), Vote(b, 0.5, [1, 0])])
    assert [rows for _, rows, _ in b.asked] == [[1, 0], [1, 0]]


def test_the_weight_is_the_best_one_and_of_several_the_middle_one() -> None:
    weight, scores = choose_weight(lambda w: 1 - abs(w - 0.3))
    assert weight == 0.3 and scores.keys() == set(WEIGHTS) and scores[0.5] == pytest.approx(0.8)
    assert min(WEIGHTS) == 0 and max(WEIGHTS) == 1
    assert choose_weight(lambda w: float(0.4 <= w <= 0.6))[0] == 0.5
    assert choose_weight(lambda w: 0.0, (0.0, 0.25, 1.0))[0] == 0.25


def test_accuracy_by_slot_of_words_and_of_whole_sentences() -> None:
    truths = [("red", "fox"), ("red", "dog"), ("blue", "dog"), ("green", "fox")]
    said = [("red", "fox"), ("blue", "dog"), ("blue", "fox"), ("red", "dog")]
    assert slot_accuracy(SLOTS, said, truths) == {"words": 0.5, "sentences": 0.25, "colour": 0.5, "thing": 0.5}
