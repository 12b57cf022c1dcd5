"""WUPS, a soft match of answers that gives credit for related words (Malinowski and Fritz 2014, arXiv 1410.0210).

Two words are as alike as the closest of their senses, by Wu and Palmer's measure: how deep in a taxonomy the deepest
concept lies that is above both. Below a threshold that counts a tenth, so that at 0.9 hardly anything but synonyms
counts; WUPS at 0 is the measure itself. An answer is the set of its words without articles, and every word must have
its like on the other side.

    WUPS(A, T) = min( product over a in A of max over t in T of m(a, t),  product over t of max over a of m(a, t) )
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, Protocol

from multimodal.metrics import content_words

Concept = Any
"""Something hashable, as the taxonomy has it."""
DISCOUNT = 0.1
"""Of a likeness below the threshold."""


class Taxonomy(Protocol):
    """Concepts under more general ones, and the words for them; WordNet is one (`multimodal.wordnet`)."""

    name: str

    def senses(self, word: str) -> Sequence[Concept]:
        """What a word may mean; empty if it is not known."""
        ...

    def parents(self, concept: Concept) -> Sequence[Concept]:
        """The more general concepts directly above; empty at the root."""
        ...


class Likeness:
    """How alike words are, from 0 to 1; remembers what it was asked.

    Args:
        taxonomy: without cycles.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self._words: dict[tuple[str, str], float] = {}
        self._depths: dict[Concept, tuple[int, int]] = {}

    def words(self, a: str, b: str) -> float:
        """Wu-Palmer of the closest senses; 1 for the same word, 0 for another one that the taxonomy does not know."""
        if a == b:
            return 1.0
        pair = (min(a, b), max(a, b))
        if pair not in self._words:
            senses = product(self.taxonomy.senses(a), self.taxonomy.senses(b))
            self._words[pair] = max((self.concepts(x, y) for x, y in senses), default=0.0)
        return self._words[pair]

    def concepts(self, a: Concept, b: Concept) -> float:
        """Wu and Palmer 1994: 2 d / (2 d + steps from a + steps from b), where d counts the concepts from the root to
        the deepest one above both (or one of them); 0 if nothing is. Of several ways up the shortest counts for a and
        b, the longest for d, and "deepest" goes by the shortest first.

        NLTK gives the same but for about 2 pairs of senses in 100: of equally deep concepts it takes the first in the
        alphabet, and its steps may go down as well as up."""
        above_a, above_b = self._above(a), self._above(b)
        common = above_a.keys() & above_b.keys()
        if not common:
            return 0.0
        shared = max(common, key=self._depth)
        depth = self._depth(shared)[1]
        return 2 * depth / (2 * depth + above_a[shared] + above_b[shared])

    def _above(self, concept: Concept) -> dict[Concept, int]:
        """The concept and all above it, with the fewest steps to each."""
        steps, level = {concept: 0}, [concept]
        while level:
            level = [parent for one in level for parent in self.taxonomy.parents(one) if parent not in steps]
            steps.update(dict.fromkeys(level, max(steps.values()) + 1))
        return steps

    def _depth(self, concept: Concept) -> tuple[int, int]:
        """Concepts from the root to this one, by the shortest and by the longest way."""
        if concept not in self._depths:
            above = [self._depth(parent) for parent in self.taxonomy.parents(concept)] or [(0, 0)]
            self._depths[concept] = (1 + min(low for low, _ in above), 1 + max(high for _, high in above))
        return self._depths[concept]


def wups(prediction: str, answers: Sequence[str], likeness: Likeness, *, threshold: float) -> float:
    """WUPS of a prediction, 0 to 1, for the answer that fits best. Where one side has no words: 1 if both have none."""
    return max((_wups(prediction, answer, likeness, threshold) for answer in answers), default=0.0)


def _wups(prediction: str, answer: str, likeness: Likeness, threshold: float) -> float:
    said, right = sorted(content_words(prediction)), sorted(content_words(answer))
    if not said or not right:
        return float(said == right)
    table = [[_kept(likeness.words(a, t), threshold) for t in right] for a in said]
    return min(math.prod(map(max, table)), math.prod(map(max, zip(*table, strict=True))))


def _kept(alike: float, threshold: float) -> float:
    return alike if alike >= threshold else DISCOUNT * alike
