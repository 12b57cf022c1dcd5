"""What a video adapter is trained and judged on: questions about clips, open or with options, and captions of them."""

import functools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multimodal.batch import Sample, Turn
from multimodal.data.broken import BrokenSamples, OnError
from multimodal.metrics import Evaluation, is_right, with_controls, word_f1
from multimodal.model import MultimodalModel
from multimodal.turns import Turns
from multimodal.wordnet import find_wordnet
from multimodal.wups import Likeness, wups
from vision.builtin_clips import BuiltinClips
from vision.clip_frames import FrameOrder, backwards, middle_frame
from vision.clip_pool import read_ahead
from vision.clip_question import ClipQuestion, ClipSet, QuestionedClip, flatten, multiple_choice
from vision.described_answers import answer_from, description_options

REVERSED, MIDDLE = "reversed", "middle_frame"
DESCRIBED = "described_accuracy"
TIME_KINDS = ("direction", "order")
"""Kinds of question whose answers are other ones when the clip is played backwards."""


WUPS = {"wups_0.9": 0.9, "wups_0.0": 0.0}
"""The two thresholds with which WUPS is published."""


class ClipSamples:
    """Clips with questions as training samples: a clip is encoded once for several of its questions.

    Args:
        questions: turns of each clip and epoch, drawn from its questions; all of them if there are fewer.
        always: so many of a clip's questions, its first ones, are asked in any case; of the others first a kind is
            drawn and then one of it. None: any of them alike.
        choice: share of the questions with options that are asked as multiple choice.
        misread: share of the words already said that are read wrong; see `multimodal.batch.misread`.
        on_error: a broken clip is skipped and counted, or ends the run.
    """

    def __init__(
        self,
        model: MultimodalModel,
        clips: ClipSet,
        *,
        questions: int = 1,
        always: int | None = None,
        choice: float = 0.0,
        misread: float = 0.0,
        on_error: OnError = "skip",
    ) -> None:
        self.clips, self.questions, self.always = clips, questions, always
        self.choice, self.misread = choice, misread
        self.turns = Turns(model, kind="video")
        self.broken = BrokenSamples(on_error=on_error, what="clips")

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, index: int, rng: random.Random) -> Sample | None:
        clip = self.clips[index]
        said = self._said(clip, rng)
        video: Any = self.turns.model.modalities["video"]
        frames = self.broken.read(lambda: video.prepare(clip.clip, between=clip.between), id=clip.name)
        if frames is None:
            return None
        return Sample({"video": (frames,)}, self.turns.learnt(said, rng, share_misread=self.misread))

    def text(self, index: int, rng: random.Random) -> tuple[Turn, ...]:
        """The turns of a sample without its clip."""
        clip = self.clips.unwritten(index) if isinstance(self.clips, BuiltinClips) else self.clips[index]
        return self.turns.learnt(self._said(clip, rng), rng)

    def _said(self, clip: QuestionedClip, rng: random.Random) -> list[tuple[str, str]]:
        asked = [
            multiple_choice(question) if question.options and rng.random() < self.choice else question
            for question in self._draw(clip.questions, rng)
        ]
        return [(one.question, one.answer) for one in asked]

    def _draw(self, questions: Sequence[ClipQuestion], rng: random.Random) -> list[ClipQuestion]:
        count = min(self.questions, len(questions))
        if self.always is None:
            return rng.sample(questions, count)
        drawn, left = list(questions[: self.always]), list(questions[self.always :])
        while len(drawn) < count:
            kind = rng.choice(sorted({one.kind for one in left}))
            drawn.append(left.pop(rng.choice([i for i, one in enumerate(left) if one.kind == kind])))
        return drawn


@dataclass(frozen=True)
class AskedClip:
    """One thing to ask about one clip."""

    clip: Path
    name: str
    question: ClipQuestion


_Shown = tuple[Path, bool, FrameOrder | None, str]
"""A clip, or a blank one like it, its frames in some order, and a prompt."""


def ask_clips(model: MultimodalModel, clips: Sequence[QuestionedClip], *, choice: bool = False) -> list[AskedClip]:
    """Every question about every clip that can be read, as multiple choice if so (then only those with options)."""
    video: Any = model.modalities["video"]
    broken = BrokenSamples(what="clips")
    for clip in clips:
        broken.read(functools.partial(video.prepare, clip.clip), id=clip.name)
    pairs = [(clip, question) for clip, question in flatten(clips) if clip.name not in broken.ids]
    if choice:
        pairs = [(clip, multiple_choice(question)) for clip, question in pairs if question.options]
    return [AskedClip(clip.clip, clip.name, question) for clip, question in pairs]


def answer_clips(
    model: MultimodalModel,
    asked: Sequence[AskedClip],
    media_from: Sequence[int | None] | None = None,
    *,
    order: FrameOrder | None = None,
    describe_with: str = "",
    said: dict[_Shown, str] | None = None,
    batch_size: int,
    **options: Any,
) -> list[str]:
    """What the model says, each shown the clip of sample `media_from[i]` (None: blank), its frames in `order`.

    A clip is read and encoded once for all that is asked about it, and then let go. With a prompt to `describe_with` it
    is described, and answers come from that alone (`vision.described_answers`). What is in `said` is not asked again,
    and what is said goes there: with one prompt for all, another's clip gets that clip's own answer.
    """
    said = {} if said is None else said
    shown = range(len(asked)) if media_from is None else media_from
    wanted: list[_Shown] = [
        (
            asked[number if source is None else source].clip,
            source is None,
            order,
            describe_with or one.question.question,
        )
        for number, (one, source) in enumerate(zip(asked, shown, strict=True))
    ]
    new: dict[tuple[Path, bool], dict[str, None]] = defaultdict(dict)  # prompts in order, none twice
    for clip, blank, _, prompt in (key for key in wanted if key not in said):
        new[clip, blank][prompt] = None
    modality: Any = model.modalities["video"]
    turns = Turns(model, kind="video")

    def samples() -> Iterator[Sample]:
        # Threads read the next clips while the model answers about this one.
        for (clip, blank), read in read_ahead(new, lambda key: modality.prepare(key[0], order=order)):
            frames = modality.blank(read.result()) if blank else read.result()
            frames = frames.with_features(modality.encode(frames.to(model.device)))
            for prompt in new[clip, blank]:
                yield Sample({"video": (frames,)}, (turns(prompt, None),))

    options["batch_size"] = batch_size
    texts = model.generate_all(samples(), **(description_options(options) if describe_with else options))
    keys = [(*key, order, prompt) for key, prompts in new.items() for prompt in prompts]
    said.update(zip(keys, texts, strict=True))
    found = [said[key] for key in wanted]
    return answer_from(model, found, [one.question.question for one in asked], **options) if describe_with else found


def score_answers(
    texts: Sequence[str], asked: Sequence[AskedClip], *, name: str = "accuracy", likeness: Likeness | None = None
) -> Mapping[str, float]:
    """Exact match, in all (`name`) and by kind where there are several; of open answers ("accuracy") the soft matches,
    too: `soft_match`, which is F1 of words, and WUPS where there is a `likeness`."""
    right = [is_right(text, one.question.right) for text, one in zip(texts, asked, strict=True)]
    scores = {name: sum(right) / len(right)}
    kinds = sorted({one.question.kind for one in asked})
    if len(kinds) > 1:
        for kind in kinds:
            own = [good for good, one in zip(right, asked, strict=True) if one.question.kind == kind]
            scores[f"{name}_{kind}"] = sum(own) / len(own)
    if name != "accuracy":
        return scores
    matches: dict[str, Callable[[str, Sequence[str]], float]] = {"soft_match": word_f1}
    if likeness is not None:
        matches |= {key: functools.partial(wups, likeness=likeness, threshold=low) for key, low in WUPS.items()}
    for match, score in matches.items():
        found = [score(text, one.question.right) for text, one in zip(texts, asked, strict=True)]
        scores[match] = sum(found) / len(found)
    return scores


def evaluate_clips(
    model: MultimodalModel,
    asked: Sequence[AskedClip],
    *,
    name: str = "accuracy",
    seed: int = 0,
    batch_size: int = 16,
    **options: Any,
) -> Evaluation[AskedClip]:
    """Answers beside four controls: another clip, a blank one, one middle frame repeated, frames in reverse order.
    Options are those of `answer_clips`.

    WUPS is among the scores where this machine has WordNet (`multimodal.wordnet.find_wordnet`).
    """
    model.eval()
    wordnet = find_wordnet()
    likeness = None if wordnet is None else Likeness(wordnet)

    said: dict[_Shown, str] = {}

    def answer(media_from: Sequence[int | None] | None = None, *, order: FrameOrder | None = None) -> list[str]:
        return answer_clips(model, asked, media_from, order=order, said=said, batch_size=batch_size, **options)

    return with_controls(
        lambda texts, samples: score_answers(texts, samples, name=name, likeness=likeness),
        lambda _, media_from: answer(media_from),
        asked,
        random.Random(f"controls/{seed}"),
        media_of=lambda one: one.name,
        others={
            MIDDLE: lambda _: answer(order=middle_frame),
            REVERSED: lambda _: answer(order=backwards),
        },
    )


def reversal_metrics(evaluation: Evaluation[AskedClip], *, name: str = "accuracy") -> dict[str, float]:
    """Whether the order of the frames is what is answered, on the questions about direction and order.

    Of clips played backwards: `..._reversed_order_questions` is the share that still gets the answer that is right
    forwards, `..._reversed_answers` the share that gets the one that is right backwards. Empty without such questions.
    """
    said = evaluation.others[REVERSED]
    pairs = [
        (text, one.question)
        for text, one in zip(said, evaluation.samples, strict=True)
        if one.question.kind in TIME_KINDS and one.question.reversed_answer is not None
    ]
    if not pairs:
        return {}
    forwards = sum(is_right(text, question.right) for text, question in pairs)
    backwards = sum(is_right(text, (str(question.reversed_answer),)) for text, question in pairs)
    return {
        f"{name}_reversed_order_questions": forwards / len(pairs),
        f"{name}_reversed_answers": backwards / len(pairs),
    }
