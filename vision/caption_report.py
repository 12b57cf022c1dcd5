"""The report page of captioning: pictures with captions, references, answers and attention, beside all numbers."""

from collections.abc import Mapping, Sequence

from multimodal.chart import Chart
from multimodal.metrics import Evaluation, normalise_answer
from multimodal.model import MultimodalModel
from multimodal.report import Answer, Card, DecoderProof, Headline, Report, RunFacts, ScoreRow, image_media
from vision.caption_pictures import attention_picture
from vision.captioning import DESCRIBED, Asked
from vision.picture import PictureSource, open_picture

LABELS = {
    "object_f1": "objects named in the caption, F1 of (colour, shape)",
    "qa_accuracy": "questions answered exactly",
    DESCRIBED: "questions answered exactly from the model's own description",
    "cider_d": "CIDEr-D",
    "bleu4": "BLEU-4",
}


def caption_cards(
    model: MultimodalModel,
    evaluations: Sequence[Evaluation[Asked]],
    shown: Sequence[int],
    *,
    pictures: Mapping[str, PictureSource],
) -> tuple[Card, ...]:
    """Cards of the samples `shown` of the first evaluation, with the answers of the others about the same pictures.

    `pictures` gives those that are not rendered, by source.
    """
    captions, others = evaluations[0], evaluations[1:]
    cards = []
    for i in shown:
        asked, said = captions.samples[i], captions.predictions[i]
        picture = asked.picture or open_picture(pictures[asked.source])
        answers = tuple(
            Answer(
                q.prompt + (" (from its description)" if DESCRIBED in evaluation.scores else ""),
                text,
                q.references[0],
                normalise_answer(text) == normalise_answer(q.references[0]),
            )
            for evaluation in others
            for q, text in zip(evaluation.samples, evaluation.predictions, strict=True)
            if q.source == asked.source
        )
        insight = ()
        if said:
            insight = (image_media(attention_picture(model, picture, said, prompt=asked.prompt), max_side=1200),)
        cards.append(
            Card((image_media(picture),), said, asked.references, answers=answers, insight=insight, title=asked.source)
        )
    return tuple(cards)


def caption_report(
    *,
    run: RunFacts,
    evaluations: Sequence[Evaluation[Asked]],
    cards: tuple[Card, ...],
    cards_note: str,
    charts: tuple[Chart, ...] = (),
    decoder: DecoderProof | None = None,
) -> Report:
    """The page: headline numbers, scores with their controls, charts, cards, facts of the run."""
    scores = [score for evaluation in evaluations for score in evaluation.scores.values()]
    return Report(
        title=run.title,
        subtitle=run.subtitle,
        headlines=tuple(
            Headline(f"{s.score:.3f}", LABELS.get(s.name, s.name), f"shuffled {s.shuffled:.3f}, blank {s.blank:.3f}")
            for s in scores
        ),
        scores=tuple(ScoreRow(s, LABELS.get(s.name, s.name)) for s in scores),
        charts=charts,
        cards=cards,
        cards_note=cards_note,
        decoder=decoder,
        facts=run.lines(),
    )
