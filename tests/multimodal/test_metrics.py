"""Metrics: known properties of CIDEr-D and BLEU, the tokens they see, and controls that really are controls."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal.errors import UserError
from multimodal.metrics import (
    CiderD,
    Scores,
    bleu4,
    caption_tokens,
    cider_d,
    derangement,
    exact_match,
    is_right,
    with_controls,
    word_f1,
)

CAPTIONS = [
    ["a black dog runs through the deep snow", "the dog is running in snow"],
    ["two children play on a red swing set", "kids on swings in a park"],
    ["a man climbs a steep rock wall alone", "the climber hangs from a cliff"],
]
FIRST = [several[0] for several in CAPTIONS]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog's ball, and the men's \"T-shirt\" .", "a dog 's ball and the men 's t-shirt"),
        ("It isn't red; they cannot see -- (really)...", "it is n't red they can not see really"),
        ("3.5 km at 10:30, 1,000 people & $5!", "3.5 km at 10:30 1,000 people & $ 5"),
        ("The dogs' bowl - what’s inside?", "the dogs bowl what 's inside"),
        ("U.S. flag: 'yes'", "u.s. flag yes"),
        ("  \n", ""),
    ],
)
def test_tokens_are_penn_treebank_words_without_punctuation(text: str, tokens: str) -> None:
    assert " ".join(caption_tokens(text)) == tokens


@given(st.lists(st.sampled_from(["a", "dog's", "t-shirt", "can't", "3.5", "cannot", "(x)", "u.s.", "y,"]), max_size=8))
def test_tokenising_twice_changes_nothing(words: list[str]) -> None:
    once = caption_tokens(" ".join(words))
    assert caption_tokens(" ".join(once)) == once


def test_only_the_reference_itself_reaches_the_top() -> None:
    single = [[caption] for caption in FIRST]
    assert cider_d(FIRST, single) == pytest.approx(10.0)
    assert bleu4(FIRST, single) == pytest.approx(1.0)
    worse = [FIRST[0].replace("snow", "sand"), *FIRST[1:]]
    assert 0 < cider_d(worse, single) < 10.0
    assert 0 < bleu4(worse, single) < 1.0


def test_captions_of_other_pictures_score_nothing_and_case_and_punctuation_do_not_matter() -> None:
    assert cider_d(FIRST[1:] + FIRST[:1], CAPTIONS) < 0.2 * cider_d(FIRST, CAPTIONS)
    shouted = [f'"{caption.upper()}!"' for caption in FIRST]
    assert cider_d(shouted, CAPTIONS) == cider_d(FIRST, CAPTIONS)
    assert bleu4(shouted, CAPTIONS) == bleu4(FIRST, CAPTIONS)


def test_cider_d_is_the_papers_formula() -> None:
    predictions = ["a dog runs in the snow", "kids play on a swing", "a man on a rock"]

    def grams(text: str) -> list[Counter[tuple[str, ...]]]:
        words = text.split()
        return [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, 5)]

    def vectors(text: str) -> list[dict[tuple[str, ...], float]]:
        def idf(gram: tuple[str, ...]) -> float:
            held = sum(any(gram in grams(r)[len(gram) - 1] for r in several) for several in CAPTIONS)
            return math.log(len(CAPTIONS) / max(1, held))

        return [{gram: count * idf(gram) for gram, count in level.items()} for level in grams(text)]

    def similarity(text: str, reference: str) -> float:
        # The released scorer measures the length difference for the penalty in bigrams, which is the same difference.
        penalty = math.exp(-((len(text.split()) - len(reference.split())) ** 2) / (2 * 6.0**2))
        total = 0.0
        for mine, theirs in zip(vectors(text), vectors(reference), strict=True):
            norms = math.hypot(*mine.values()) * math.hypot(*theirs.values())
            dot = sum(min(value, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, value in mine.items())
            total += penalty * dot / norms if norms else 0.0
        return 10 * total / 4

    each = [sum(similarity(p, r) for r in rs) / len(rs) for p, rs in zip(predictions, CAPTIONS, strict=True)]
    assert cider_d(predictions, CAPTIONS) == pytest.approx(sum(each) / len(each))


def test_captions_one_by_one_score_as_in_their_corpus_in_any_company() -> None:
    predictions = ["a dog runs in the snow", "kids play on a swing", "a man on a rock"]
    score = CiderD(CAPTIONS)
    each = score(predictions, CAPTIONS)
    assert sum(each) / 3 == pytest.approx(cider_d(predictions, CAPTIONS)) and len(set(each)) == 3
    assert score(predictions[1:2] * 2, CAPTIONS[1:2] * 2) == [pytest.approx(each[1])] * 2
    assert score(predictions[::-1], CAPTIONS[::-1]) == pytest.approx(each[::-1])
    known = len(score._frequency)
    assert score(["words that nobody has said"], CAPTIONS[:1]) == [0.0] and len(score._frequency) == known
    with pytest.raises(UserError, match="at least 2"):
        CiderD(CAPTIONS[:1])


def test_nothing_is_printed_and_empty_captions_score_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert cider_d(["", " ", "."], CAPTIONS) == 0.0
    assert bleu4(["", " ", "."], CAPTIONS) == pytest.approx(0.0)
    assert bleu4(FIRST, CAPTIONS) > 0.9
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("metric", [cider_d, bleu4])
def test_unusable_input_is_named(metric) -> None:
    with pytest.raises(UserError, match="2 predictions for 3"):
        metric(FIRST[:2], CAPTIONS)
    with pytest.raises(UserError, match="0 samples"):
        metric([], [])
    with pytest.raises(UserError, match="sample 1"):
        metric(FIRST, [CAPTIONS[0], [], CAPTIONS[2]])
    with pytest.raises(UserError, match="list of captions"):
        metric(FIRST, FIRST)


def test_one_sample_has_no_document_frequencies() -> None:
    with pytest.raises(UserError, match="at least 2"):
        cider_d(FIRST[:1], CAPTIONS[:1])
    assert bleu4(FIRST[:1], CAPTIONS[:1]) == pytest.approx(1.0)
    with pytest.raises(UserError, match="no word"):
        cider_d(["a", "b"], [["."], ["!"]])


def test_exact_match_ignores_case_space_and_the_final_stop_only() -> None:
    answers = [["red"], ["2 dogs", "Two dogs."], ["cat"], ["green"]]
    assert exact_match([" Red. ", "two  dogs", "a cat", "blue"], answers) == 0.5
    for predictions, answers in ([], []), (["a"], [["a"], ["b"]]):
        with pytest.raises(UserError, match="exact match"):
            exact_match(predictions, answers)


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.integers(0, 10_000))
def test_derangement_moves_everyone_out_of_their_group(groups: list[int], seed: int) -> None:
    n = len(groups)
    plain = derangement(n, random.Random(seed))
    assert sorted(plain) == list(range(n)) and all(i != j for i, j in enumerate(plain))
    assert plain == derangement(n, random.Random(seed))
    if 2 * max(Counter(groups).values()) > n:
        with pytest.raises(UserError, match="more than half"):
            derangement(n, random.Random(seed), groups=groups)
        return
    grouped = derangement(n, random.Random(seed), groups=groups)
    assert sorted(grouped) == list(range(n))
    assert all(groups[i] != groups[j] for i, j in enumerate(grouped))


def test_derangement_depends_on_the_seed_and_needs_two() -> None:
    assert len({tuple(derangement(8, random.Random(seed))) for seed in range(20)}) > 10
    for n in (0, 1):
        with pytest.raises(UserError, match="at least 2"):
            derangement(n, random.Random(0))


def test_controls_tell_a_model_that_looks_from_one_that_does_not() -> None:
    colours = ["red", "red", "green", "green", "blue", "blue"]

    def looks(samples, media_from):
        return ["grey" if source is None else samples[source] for source in media_from]

    def guesses(samples, media_from):
        return ["red" for _ in media_from]

    def score(predictions, samples):
        return {"accuracy": exact_match(predictions, [[sample] for sample in samples])}

    seen = with_controls(score, looks, colours, random.Random(0), media_of=lambda colour: colour)
    assert seen.scores["accuracy"] == Scores("accuracy", 1.0, 0.0, 0.0)
    assert seen.predictions == colours and set(seen.blank) == {"grey"}
    assert all(a != b for a, b in zip(seen.shuffled, colours, strict=True))
    assert seen.metrics() == {"accuracy": 1.0, "accuracy_shuffled": 0.0, "accuracy_blank": 0.0}
    assert "shuffled 0.0000" in str(seen) and seen.scores["accuracy"].over_blank == math.inf

    more = with_controls(
        score, looks, colours, random.Random(0), media_of=lambda colour: colour, others={"dim": lambda _: ["red"] * 6}
    )
    assert more.metrics() == seen.metrics() | {"accuracy_dim": pytest.approx(1 / 3)}
    assert more.others == {"dim": ["red"] * 6} and "media dim 0.3333" in str(more)

    blind = with_controls(score, guesses, colours, random.Random(0)).scores["accuracy"]
    assert blind.score == blind.shuffled == blind.blank == pytest.approx(1 / 3)
    assert blind.over_shuffled == blind.over_blank == 1.0


def test_predict_fn_may_not_lose_samples() -> None:
    with pytest.raises(ValueError, match="1 texts for 2"):
        with_controls(lambda p, s: {}, lambda s, m: ["x"], ["a", "b"], random.Random(0))


def test_any_of_the_answers_is_right_and_words_in_common_count_softly() -> None:
    assert is_right("A Dog.", ("cat", "a dog")) and not is_right("dogs", ("dog",)) and not is_right("x", ())
    assert word_f1("the dog", ("a cat", "a dog")) == 1.0 and word_f1("a red dog", ("dog",)) == pytest.approx(2 / 3)
    assert word_f1("", ("dog",)) == 0.0 and word_f1("cat", ()) == 0.0
