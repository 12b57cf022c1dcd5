"""Scores of generated text, and the two controls without which a score says nothing.

A caption model can score well by knowing what captions look like, without looking at the picture. So `with_controls`
measures every score three times: with each sample's own media, with the media of another sample, and with the media
blanked. What the first has over the other two is what the model saw.

CIDEr-D and BLEU come from pycocoevalcap, without its Java tokeniser (`caption_tokens` stands in for it).
"""

import contextlib
import io
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.cider.cider_scorer import CiderScorer, cook_refs, cook_test

from multimodal.errors import UserError

_CLITIC = re.compile(r"n't\b|(?<=\w)'(?:s|m|d|re|ll|ve)\b")
_CLOSED_UP = re.compile(r"\b(can)(not)\b|\b(gon|wan)(na)\b|\b(got)(ta)\b")
_TOKEN = re.compile(
    r"n't(?!\w)|'(?:s|m|d|re|ll|ve)(?!\w)"  # clitics, set apart before
    r"|\d+(?:[.,:/]\d+)+"  # 3.5  1,000  10:30
    r"|(?:[^\W\d_]\.){2,}"  # u.s.
    r"|\w+(?:[-'/&]\w+)*"  # words; hyphenated ones stay whole, as in the Penn Treebank
    r"|[$%&#@+=*]"
)


def caption_tokens(text: str) -> list[str]:
    """Lower-case words of a caption as the COCO evaluation sees them: Penn Treebank tokens without the punctuation.

    Quotes, brackets, full stops, commas, colons, semicolons, dashes and ellipses go; clitics are set apart ("dog's" ->
    "dog 's", "isn't" -> "is n't", "cannot" -> "can not"); hyphenated words stay one token. It differs from the Java
    tokeniser in places that captions hardly reach: abbreviations such as "mr." lose their stop, and brackets are
    dropped where the original, by a slip of case, keeps them as "-lrb-".
    """
    text = text.lower().replace("’", "'").replace("‘", "'")
    text = _CLOSED_UP.sub(lambda match: " ".join(part for part in match.groups() if part), text)
    text = _CLITIC.sub(lambda match: f" {match.group()}", text)
    return _TOKEN.findall(text)


def cider_d(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of a corpus, 0 to 10, where 1.0 is what papers print as 100.

    Document frequencies are those of `references`, the evaluated set itself, as in the COCO evaluation; so scores of
    sets of different size do not compare, and a set of one has no document frequencies at all.

    Raises: UserError for an empty set, a set of one, unequal lengths, or a sample without a reference.
    """
    _check(predictions, references, minimum=2, metric="CIDEr-D")
    hypotheses, gold = _coco_format(predictions, references)
    if not any(reference for several in gold.values() for reference in several):
        raise UserError("CIDEr-D: found no word in any reference, expected reference captions")
    return float(Cider().compute_score(gold, hypotheses)[0])


class CiderD:
    """CIDEr-D of captions one by one, 0 to 10 each, with the document frequencies of a corpus of their own.

    Args:
        corpus: the references of each of its pictures.

    Raises:
        UserError: fewer than two pictures, or one without a reference.
    """

    def __init__(self, corpus: Sequence[Sequence[str]]) -> None:
        _check([""] * len(corpus), corpus, minimum=2, metric="CIDEr-D")
        counted = _CorpusScorer(documents=len(corpus), frequency=Counter())
        for references in corpus:
            counted.cook_append(None, [_coco_text(text) for text in references])
        counted.compute_doc_freq()
        self._documents, self._frequency = len(corpus), counted.document_frequency

    def __call__(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """A score for each prediction against its own references."""
        scorer = _CorpusScorer(documents=self._documents, frequency=self._frequency)
        tests: dict[str, Any] = {}  # several captions of one picture, and one with those of several, are cooked once
        golds: dict[tuple[str, ...], Any] = {}
        for text, several in zip(predictions, references, strict=True):
            key = tuple(several)
            if text not in tests:
                tests[text] = cook_test(_coco_text(text))
            if key not in golds:
                golds[key] = cook_refs([_coco_text(reference) for reference in several])
            scorer.ctest.append(tests[text])
            scorer.crefs.append(golds[key])
        return [float(score) for score in scorer.compute_cider()]


class _CorpusScorer(CiderScorer):
    """The scorer of pycocoevalcap, which would take what it is given to score for the corpus."""

    def __init__(self, *, documents: int, frequency: Counter[tuple[str, ...]]) -> None:
        self._documents = documents
        super().__init__()
        self.document_frequency = frequency  # a Counter does not grow when it is asked for what it does not hold

    @property
    def ref_len(self) -> float:
        """Logarithm of the number of documents."""
        return math.log(self._documents)

    @ref_len.setter
    def ref_len(self, value: object) -> None: ...


def bleu4(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 with the closest reference length, 0 to 1. Raises as `cider_d` does, but one sample is enough."""
    _check(predictions, references, minimum=1, metric="BLEU-4")
    hypotheses, gold = _coco_format(predictions, references)
    with contextlib.redirect_stdout(io.StringIO()):
        return float(Bleu(4).compute_score(gold, hypotheses, verbose=0)[0][3])


def exact_match(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Share of predictions that are right by `is_right`, each with the answers that count, 0 to 1. Raises UserError as
    `bleu4` does.
    """
    if len(predictions) != len(answers) or not predictions:
        raise UserError(
            f"exact match: found {len(predictions)} predictions for {len(answers)} answers, expected equally many"
        )
    return sum(map(is_right, predictions, answers)) / len(answers)


def normalise_answer(text: str) -> str:
    """Lower-case, white space collapsed, without a trailing full stop: the one notion of equal answers."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def is_right(prediction: str, answers: Sequence[str]) -> bool:
    """Whether a prediction equals one of the answers after `normalise_answer`."""
    return normalise_answer(prediction) in {normalise_answer(answer) for answer in answers}


def word_f1(prediction: str, answers: Sequence[str]) -> float:
    """A soft match, 0 to 1: F1 of the words that prediction and answer share (`caption_tokens`, without articles), for
    the answer that fits best. As in SQuAD; unlike WUPS (`multimodal.wups`) it gives no credit for related words."""
    return max((_word_f1(content_words(prediction), content_words(answer)) for answer in answers), default=0.0)


def content_words(text: str) -> Counter[str]:
    """The words of an answer (`caption_tokens`) without articles, and how often each is there."""
    return Counter(word for word in caption_tokens(text) if word not in ("a", "an", "the"))


def _word_f1(predicted: Counter[str], expected: Counter[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * (predicted & expected).total() / (predicted.total() + expected.total())


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]], *, minimum: int, metric: str) -> None:
    if len(predictions) != len(references):
        raise UserError(
            f"{metric}: found {len(predictions)} predictions for {len(references)} samples, expected one for each"
        )
    if len(predictions) < minimum:
        raise UserError(f"{metric}: found {len(predictions)} samples, expected at least {minimum}")
    for index, several in enumerate(references):
        if isinstance(several, str) or not several:
            raise UserError(f"{metric}: found {several!r} as references of sample {index}, expected a list of captions")


def _coco_format(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    hypotheses = {i: [_coco_text(text)] for i, text in enumerate(predictions)}
    gold = {i: [_coco_text(text) for text in several] for i, several in enumerate(references)}
    return hypotheses, gold


def _coco_text(text: str) -> str:
    return " ".join(caption_tokens(text))


@dataclass(frozen=True)
class Scores:
    """One score beside its controls, the two that all media have and those of a kind. Higher is better unless the score
    is an error rate. `blank_name` is what the blank control is called: silence is blank sound.
    """

    name: str
    score: float
    shuffled: float
    blank: float
    others: Mapping[str, float] = field(default_factory=dict)
    blank_name: str = "blank"

    @property
    def over_shuffled(self) -> float:
        """How many times the shuffled control the score is; infinite where the control is 0."""
        return _ratio(self.score, self.shuffled)

    @property
    def over_blank(self) -> float:
        """How many times the blank control the score is."""
        return _ratio(self.score, self.blank)

    def metrics(self) -> dict[str, float]:
        """All numbers under the names of `metrics.json`: `name`, `name_shuffled`, `name_blank` ..."""
        return {self.name: self.score} | {f"{self.name}_{name}": value for name, value in self.controls.items()}

    @property
    def controls(self) -> dict[str, float]:
        """Every control by name."""
        return {"shuffled": self.shuffled, self.blank_name: self.blank, **self.others}

    def __str__(self) -> str:
        controls = ", ".join(f"media {name.replace('_', ' ')} {value:.4f}" for name, value in self.controls.items())
        return f"{self.name} {self.score:.4f}  ({controls})"


def _ratio(score: float, control: float) -> float:
    if control:
        return score / control
    return float("inf") if score else 1.0


S = TypeVar("S")


@dataclass(frozen=True)
class Evaluation(Generic[S]):
    """Everything that `with_controls` measured: scores by name, and the sets of predictions, one per sample each."""

    scores: dict[str, Scores]
    samples: Sequence[S]
    predictions: list[str]
    shuffled: list[str]
    blank: list[str]
    others: Mapping[str, list[str]] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """All numbers in one flat dict for `metrics.json`."""
        return {name: value for scores in self.scores.values() for name, value in scores.metrics().items()}

    def __str__(self) -> str:
        return "\n".join(map(str, self.scores.values()))


def with_controls(
    score_fn: Callable[[list[str], Sequence[S]], Mapping[str, float]],
    predict_fn: Callable[[Sequence[S], list[int | None]], list[str]],
    samples: Sequence[S],
    rng: random.Random,
    *,
    media_of: Callable[[S], Hashable] | None = None,
    others: Mapping[str, Callable[[Sequence[S]], list[str]]] | None = None,
    blank_name: str = "blank",
) -> Evaluation[S]:
    """Predict and score `samples` with their own media, with shuffled media, and with blank media.

    Args:
        score_fn: predictions and samples -> scores by name, e.g. `{"cider_d": 0.3, "bleu4": 0.1}`.
        predict_fn: samples and, for each, the index of the sample whose media it is shown (None: blank media) -> texts.
        rng: decides the shuffle; the same seed gives the same one.
        media_of: what identifies a sample's media. Samples of equal media (several questions on one picture) are never
            given each other's. Default: all media differ.
        others: further controls by name: what is said when the media are changed in that way.
        blank_name: what the blank control is called.

    Raises: UserError if there are no samples or the media cannot be shuffled; ValueError if `predict_fn` loses samples.
    """
    groups: list[Any] | None = None if media_of is None else [media_of(sample) for sample in samples]
    swapped = derangement(len(samples), rng, groups=groups)
    own = list(range(len(samples)))
    results: list[tuple[list[str], Mapping[str, float]]] = []

    def measure(texts: list[str]) -> None:
        if len(texts) != len(samples):
            raise ValueError(f"predict_fn gave {len(texts)} texts for {len(samples)} samples")
        results.append((texts, score_fn(texts, samples)))

    for media_from in (own, swapped, [None] * len(samples)):
        measure(list(predict_fn(samples, list(media_from))))
    for predict in (others or {}).values():
        measure(list(predict(samples)))
    (predictions, scored), (shuffled, scored_shuffled), (blank, scored_blank), *rest = results
    extra = dict(zip(others or {}, rest, strict=True))
    scores = {
        name: Scores(
            name=name,
            score=value,
            shuffled=scored_shuffled[name],
            blank=scored_blank[name],
            others={control: found[name] for control, (_, found) in extra.items()},
            blank_name=blank_name,
        )
        for name, value in scored.items()
    }
    said = {control: texts for control, (texts, _) in extra.items()}
    return Evaluation(scores, samples, predictions, shuffled, blank, said)


def derangement(n: int, rng: random.Random, *, groups: Sequence[Hashable] | None = None) -> list[int]:
    """A random permutation of 0..n-1 that sends nobody to itself, nor, with `groups`, to a member of its own group.

    Members are laid out in random order, group by group, and the circle is turned by at least the size of the largest
    group.

    Raises: UserError if there is none: fewer than two members, or a group that holds more than half of them.
    """
    keys: Sequence[Hashable] = range(n) if groups is None else groups
    if len(keys) != n:
        raise ValueError(f"{len(keys)} group keys for {n} members")
    largest = max(Counter(keys).values(), default=0)
    if n < 2 or 2 * largest > n:
        raise UserError(
            f"shuffled control: found {n} samples, {largest} with the same media, "
            "expected at least 2, and no media on more than half"
        )
    by_group: defaultdict[Hashable, list[int]] = defaultdict(list)
    for member in rng.sample(range(n), n):
        by_group[keys[member]].append(member)
    circle = [member for group in by_group.values() for member in group]
    turn = rng.randint(largest, n - largest)
    image = [0] * n
    for place, member in enumerate(circle):
        image[member] = circle[(place + turn) % n]
    return image
