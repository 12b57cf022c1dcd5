"""The report page of video question answering: film strips with questions and answers, and the weight of each frame."""

from collections.abc import Mapping, Sequence

from PIL import Image

from multimodal.chart import Chart
from multimodal.messages import Message
from multimodal.metrics import Evaluation, is_right
from multimodal.model import MultimodalModel
from multimodal.report import (
    Answer,
    Card,
    DecoderProof,
    Fact,
    Headline,
    Report,
    RunFacts,
    ScoreRow,
    image_media,
)
from multimodal.wordnet import find_wordnet
from vision.clip import read_clip
from vision.clip_sampling import Clip
from vision.film_strip import MOST_FRAMES, draw_film_strip, stack_strips
from vision.frame_weights import word_frame_weights
from vision.video_answering import DESCRIBED, MIDDLE, REVERSED, AskedClip

LABELS = {
    "accuracy": "open questions answered exactly",
    DESCRIBED: "open questions answered exactly from its own description",
    "choice_accuracy": "multiple choice, by letter",
    "soft_match": "words in common with the answer, F1",
    "wups_0.9": "WUPS at 0.9",
    "wups_0.0": "WUPS at 0",
}

IN_A_LINE = 4
"""Frames of a card, which is narrow."""


def attention_strips(model: MultimodalModel, messages: list[Message], answer: str) -> Image.Image:
    """A film strip of each clip of a conversation, with a row for each word of the answer.

    Raises:
        UserError: a clip cannot be read.
    """
    words, weights = word_frame_weights(model, messages, answer)
    parts = (part for message in messages if not isinstance(message["content"], str) for part in message["content"])
    sources = (part["video"] for part in parts if part["type"] == "video")
    strips = []
    for source, weights_WF in zip(sources, weights, strict=True):
        clip = read_clip(source, count=_sampled(model))
        strips.append(draw_film_strip(clip.frames, _times(clip), words=words, weights_WF=weights_WF))
    return stack_strips(strips)


def _sampled(model: MultimodalModel) -> int:
    return model.modalities["video"].config.frames  # type: ignore[union-attr, return-value]


def _times(clip: Clip) -> list[str]:
    return [f"{second:.1f} s" for second in clip.seconds]


def video_cards(
    model: MultimodalModel, evaluations: Mapping[str, Evaluation[AskedClip]], shown: Sequence[int]
) -> tuple[Card, ...]:
    """Cards of the samples `shown` of the first evaluation, with what was said when the clip was changed."""
    evaluation = next(iter(evaluations.values()))
    cards = []
    for i in shown:
        asked, said = evaluation.samples[i], evaluation.predictions[i]
        question = asked.question
        clip = read_clip(asked.clip, count=min(_sampled(model), MOST_FRAMES))
        lines = (slice(start, start + IN_A_LINE) for start in range(0, len(clip.frames), IN_A_LINE))
        strip = stack_strips([draw_film_strip(clip.frames[line], _times(clip)[line]) for line in lines])
        answers = [Answer(question.question, said, question.answer, is_right(said, question.right))]
        if DESCRIBED in evaluations:
            text = evaluations[DESCRIBED].predictions[i]
            about = f"{question.question} (from its own description)"
            answers.append(Answer(about, text, question.answer, is_right(text, question.right)))
        for control, expected in ((REVERSED, question.reversed_answer), (MIDDLE, None)):
            text = evaluation.others[control][i]
            right = expected is not None and is_right(text, (expected,))
            name = control.replace("_", " ")
            answers.append(Answer(f"{question.question} ({name})", text, expected or "not to be seen", right))
        messages: list[Message] = [
            {
                "role": "user",
                "content": [{"type": "video", "video": asked.clip}, {"type": "text", "text": question.question}],
            }
        ]
        insight = ()
        if said:
            insight = (image_media(attention_strips(model, messages, said), max_side=1400),)
        cards.append(
            Card(
                (image_media(strip, max_side=1400),),
                said,
                question.right,
                answers=tuple(answers),
                insight=insight,
                title=question.question,
                insight_title="Which frames each word looked at",
            )
        )
    return tuple(cards)


def video_report(
    *,
    run: RunFacts,
    evaluations: Mapping[str, Evaluation[AskedClip]],
    metrics: Mapping[str, float],
    cards: tuple[Card, ...],
    cards_note: str,
    charts: tuple[Chart, ...] = (),
    decoder: DecoderProof | None = None,
) -> Report:
    """The page: headline numbers, scores with their controls, charts, cards, facts of the run."""
    scores = [score for evaluation in evaluations.values() for score in evaluation.scores.values()]
    headlines = [
        Headline(
            f"{score.score:.3f}",
            LABELS[score.name],
            ", ".join(f"{control.replace('_', ' ')} {value:.3f}" for control, value in score.controls.items()),
        )
        for score in scores
        if score.name in LABELS
    ]
    order = metrics.get("accuracy_reversed_order_questions")
    if order is not None:
        follows = f"{metrics['accuracy_reversed_answers']:.3f} say what is right backwards"
        headlines.append(Headline(f"{order:.3f}", "direction and order, right forwards, played backwards", follows))
    rows = [
        ScoreRow(
            score,
            LABELS.get(score.name, score.name.replace("_", " ")),
            ", ".join(f"{control.replace('_', ' ')} {value:.3f}" for control, value in score.others.items()),
        )
        for score in scores
    ]
    return Report(
        title=run.title,
        subtitle=run.subtitle,
        headlines=tuple(headlines),
        scores=tuple(rows),
        charts=charts,
        cards=cards,
        cards_note=cards_note,
        decoder=decoder,
        facts=(*run.lines(), _soft_match()),
    )


def _soft_match() -> Fact:
    """Which soft matches this machine can compute."""
    wordnet = find_wordnet()
    return Fact(
        "Soft match",
        "F1 of words; no WordNet for WUPS" if wordnet is None else f"F1 of words, WUPS over {wordnet.name}",
    )
