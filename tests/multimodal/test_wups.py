"""WUPS over a made-up taxonomy: Wu and Palmer's numbers by hand, and the score as it is published."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multimodal.wups import DISCOUNT, Likeness, wups
from tests.multimodal.made_wordnet import PARENTS, WORDS, MadeTaxonomy

LIKENESS = Likeness(MadeTaxonomy())
texts = st.lists(st.sampled_from([*WORDS, "the", "unheard"]), max_size=4).map(" ".join)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("dog", "dog", 1),
        ("dog", "cat", 2 * 2 / (3 + 3)),  # animal is the second from the root, both are one below
        ("puppy", "cat", 2 * 2 / (4 + 3)),
        ("puppy", "dog", 2 * 3 / (4 + 3)),
        ("puppy", "hammer", 2 * 1 / (4 + 3)),
        ("thing", "puppy", 2 * 1 / (1 + 4)),
        ("rex", "puppy", 2 * 3 / (4 + 4)),
    ],
)
def test_concepts_are_as_alike_as_the_one_above_them_is_deep(a: str, b: str, expected: float) -> None:
    assert LIKENESS.concepts(a, b) == pytest.approx(expected) == LIKENESS.concepts(b, a)


def test_what_has_nothing_above_both_is_not_alike() -> None:
    apart = type("Apart", (MadeTaxonomy,), {"parents": lambda self, concept: ()})
    assert Likeness(apart()).concepts("dog", "cat") == 0


def test_words_are_as_alike_as_their_closest_senses() -> None:
    assert LIKENESS.words("hound", "dog") == 1  # synonyms
    assert LIKENESS.words("boxer", "cat") == LIKENESS.concepts("dog", "cat")
    assert LIKENESS.words("boxer", "hammer") == LIKENESS.concepts("tool", "hammer")
    assert LIKENESS.words("unheard", "unheard") == 1 and LIKENESS.words("unheard", "dog") == 0


def test_below_the_threshold_a_tenth_counts() -> None:
    alike = LIKENESS.concepts("puppy", "dog")
    assert wups("a puppy", ["the dog"], LIKENESS, threshold=0) == pytest.approx(alike)
    assert wups("a puppy", ["the dog"], LIKENESS, threshold=alike) == pytest.approx(alike)
    assert wups("a puppy", ["the dog"], LIKENESS, threshold=0.9) == pytest.approx(DISCOUNT * alike)
    assert wups("hound", ["dog"], LIKENESS, threshold=0.9) == 1


def test_every_word_of_either_side_must_have_its_like() -> None:
    cat, hammer = LIKENESS.words("dog", "cat"), LIKENESS.words("dog", "hammer")
    assert wups("dog", ["dog cat"], LIKENESS, threshold=0) == pytest.approx(cat)
    assert wups("dog cat hammer", ["dog"], LIKENESS, threshold=0) == pytest.approx(cat * hammer)
    assert wups("cat", ["hammer", "dog"], LIKENESS, threshold=0) == pytest.approx(cat)  # the best of the answers
    assert wups("", ["dog"], LIKENESS, threshold=0) == 0 == wups("dog", [""], LIKENESS, threshold=0)
    assert wups("the", [""], LIKENESS, threshold=0) == 1 and wups("dog", [], LIKENESS, threshold=0) == 0


@given(texts, texts, st.floats(0, 1))
def test_bounds_and_symmetry(prediction: str, answer: str, threshold: float) -> None:
    score = wups(prediction, [answer], LIKENESS, threshold=threshold)
    assert 0 <= score <= 1 and score == pytest.approx(wups(answer, [prediction], LIKENESS, threshold=threshold))
    assert score <= wups(prediction, [answer], LIKENESS, threshold=0) + 1e-12
    assert wups(answer, [answer], LIKENESS, threshold=threshold) == 1


def test_a_concept_is_nearer_to_its_parents_than_to_anything_above_them() -> None:
    for concept, parents in PARENTS.items():
        for parent in parents:
            for above in PARENTS[parent]:
                assert LIKENESS.concepts(concept, parent) > LIKENESS.concepts(concept, above)
