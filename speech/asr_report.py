"""The report page of speech recognition: sounds with their pictures, transcripts with errors coloured, all numbers."""

from collections.abc import Mapping, Sequence

from multimodal.chart import Chart
from multimodal.model import MultimodalModel
from multimodal.report import Card, DecoderProof, Headline, Report, RunFacts, ScoreRow
from speech.asr import SpeechScores, speech_of
from speech.features import LogMel, LogMelConfig
from speech.sound_picture import sound_media
from speech.word_errors import compare_words

LABELS = {
    "wer": "word error rate",
    "cer": "character error rate",
    "exact": "answered exactly",
    "bleu": "BLEU of 100",
    "chrf": "chrF of 100",
}
ERROR_RATES = ("wer", "cer")
"""Scores that are better when they are lower."""


def speech_cards(model: MultimodalModel, scores: SpeechScores, shown: Sequence[int]) -> tuple[Card, ...]:
    """Cards of the utterances `shown`."""
    found, cards = scores.evaluation, []
    speech = speech_of(model)
    log_mel = speech.log_mel if isinstance(speech.log_mel, LogMel) else LogMel(LogMelConfig(rate=speech.rate))
    for i in shown:
        utterance, said = found.samples[i].utterance, found.predictions[i]
        media = sound_media(found.samples[i].waveform, log_mel, utterance.id)
        words = compare_words(said, utterance.wanted)
        title = f"{utterance.id}, {utterance.speaker}" if utterance.speaker else utterance.id
        cards.append(Card(media, said, (utterance.wanted,), title=title, words=words))
    return tuple(cards)


def asr_report(
    *,
    run: RunFacts,
    scores: Mapping[str, SpeechScores],
    cards: tuple[Card, ...],
    cards_note: str,
    goals: Mapping[str, float] | None = None,
    charts: tuple[Chart, ...] = (),
    decoder: DecoderProof | None = None,
) -> Report:
    """The page: headline numbers, scores with their controls, charts, cards, facts of the run.

    Args:
        scores: of each set by its name; "" is the main one.
        goals: of scores by their name in `metrics.json`: error rates at most so high, others at least.
    """
    goals = goals or {}
    headlines, rows = [], []
    for name, found in scores.items():
        for key, score in found.evaluation.scores.items():
            label = LABELS.get(key, key) + (f" ({name.replace('_', ' ')})" if name else "")
            goal = goals.get(f"{name}_{key}" if name else key)
            lower = key in ERROR_RATES
            good = None if goal is None else (score.score <= goal if lower else score.score >= goal)
            controls = f"shuffled {score.shuffled:.3f}, silence {score.blank:.3f}"
            headlines.append(Headline(f"{score.score:.3f}", label, controls, good))
            rows.append(ScoreRow(score, label, "lower is better" if lower else ""))
        factor = f"{found.real_time_factor:.3f}"
        headlines.append(Headline(factor, f"real-time factor{f' ({name})' if name else ''}", "seconds for a second"))
    return Report(
        title=run.title,
        subtitle=run.subtitle,
        headlines=tuple(headlines),
        scores=tuple(rows),
        charts=charts,
        cards=cards,
        cards_note=cards_note,
        decoder=decoder,
        facts=run.lines(),
    )
