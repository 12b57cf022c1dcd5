"""What the speech adapter is trained and judged on: transcripts, translations and replies."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from multimodal.batch import Sample, Turn
from multimodal.data.broken import OnError
from multimodal.data.text import REPEAT_PROMPT, TRANSLATE_PROMPT, spoken_form
from multimodal.errors import UserError
from multimodal.messages import encode_prompt
from multimodal.metrics import Evaluation, with_controls
from multimodal.model import MultimodalModel
from multimodal.turns import Turns
from speech.augment import Augment
from speech.dialogue import DialogueLoss, in_text, with_replies
from speech.speech_modality import SpeechModality
from speech.translation_scores import bleu, chrf
from speech.utterance import SpeechTask, Utterance, Waveforms
from speech.word_errors import character_error_rate, exact_rate, word_error_rate

_PROMPTS: dict[SpeechTask, str] = {"transcribe": REPEAT_PROMPT, "translate": TRANSLATE_PROMPT, "dialogue": ""}
SILENCE_SECONDS = (0.3, 3.0)
SILENCE_LEVELS = (1e-5, 1e-2)
"""Standard deviations of the noise in which nobody speaks."""


def prompt_of(task: SpeechTask, language: str) -> str:
    """What to ask before an utterance, to get an answer in `language`; nothing in a dialogue."""
    return _PROMPTS[task].format(language=language)


def speech_of(model: MultimodalModel) -> SpeechModality:
    """The speech modality of a model.

    Raises:
        UserError: it has none.
    """
    if "audio" not in model.modalities:
        raise UserError("the adapter has no speech; expected one trained by train_asr")
    return cast(SpeechModality, model.modalities["audio"])


class SpeechSamples:
    """Utterances with their answers as training samples.

    Args:
        augment: other speeds and noise.
        silence: part of the samples in which nobody speaks and the answer is empty, so that silence is not transcribed.
        dialogue_loss: how replies are learnt.
        keep_mb: as in `Waveforms`.
        on_error: a broken recording gives None or raises.
    """

    def __init__(
        self,
        model: MultimodalModel,
        utterances: Sequence[Utterance],
        *,
        augment: Augment | None = None,
        silence: float = 0.0,
        dialogue_loss: DialogueLoss = "cross-entropy",
        keep_mb: float = 0.0,
        on_error: OnError = "skip",
    ) -> None:
        self.model, self.utterances, self.silence, self.dialogue_loss = model, utterances, silence, dialogue_loss
        self.turns = Turns(model, kind="audio", text_first=True)
        speech = speech_of(model)
        self.rate, self.longest_seconds = speech.rate, speech.longest_seconds
        sounds = [(u.sound, u.id) for u in utterances]
        self.waveforms = Waveforms(
            sounds,
            rate=self.rate,
            augment=augment,
            heard_seconds=self.longest_seconds,
            keep_mb=keep_mb,
            on_error=on_error,
        )

    def __len__(self) -> int:
        return len(self.utterances)

    def sample(self, index: int, rng: random.Random) -> Sample | None:
        utterance = self.utterances[index]
        prompt = prompt_of(utterance.task, utterance.language)
        if rng.random() < self.silence:
            return Sample({"audio": (self._quiet(rng),)}, (self.turns(prompt, ""),))
        waveform_S = self.waveforms.sample(index, rng)
        if waveform_S is None:
            return None
        return Sample({"audio": (waveform_S,)}, (self._turn(utterance, prompt),))

    def _turn(self, utterance: Utterance, prompt: str) -> Turn:
        if utterance.reply is None:
            return self.turns(prompt, spoken_form(utterance.wanted))
        turn = replace(self.turns(prompt, None), answer=list(utterance.reply.ids))
        if self.dialogue_loss == "cross-entropy":
            return turn
        return replace(turn, teacher=encode_prompt(in_text(utterance.text), self.model.vocabulary).ids)

    def _quiet(self, rng: random.Random) -> Tensor:
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        low, high = SILENCE_LEVELS
        level = low * (high / low) ** rng.random()
        seconds = min(rng.uniform(*SILENCE_SECONDS), self.longest_seconds)
        return level * torch.randn(round(seconds * self.rate), generator=generator)


@dataclass(frozen=True)
class Spoken:
    """An utterance with its waveform [S]."""

    utterance: Utterance
    waveform: Tensor

    @property
    def prompt(self) -> str:
        return prompt_of(self.utterance.task, self.utterance.language)


def read_spoken(model: MultimodalModel, utterances: Sequence[Utterance]) -> list[Spoken]:
    """Utterances with their waveforms, those that cannot be read left out with a warning.

    Raises:
        UserError: fewer than two can be read.
    """
    speech, sounds = speech_of(model), [(u.sound, u.id) for u in utterances]
    waveforms = Waveforms(sounds, rate=speech.rate, heard_seconds=speech.longest_seconds)
    found = [(u, waveforms.sample(i, random.Random(i))) for i, u in enumerate(utterances)]
    spoken = [Spoken(u, waveform_S) for u, waveform_S in found if waveform_S is not None]
    if len(spoken) < 2:
        raise UserError(f"{len(spoken)} of {len(utterances)} recordings can be read; expected two or more to evaluate")
    return spoken


def answer_speech(
    model: MultimodalModel, prompts: Sequence[str], waveforms: Sequence[Tensor], *, batch_size: int, **options: Any
) -> list[str]:
    """What the model says of each waveform [S], in order; like lengths are answered together. Options as in
    `generate`.
    """
    turns = Turns(model, kind="audio", text_first=True)
    by_length = sorted(range(len(waveforms)), key=lambda i: len(waveforms[i]))
    texts = [""] * len(waveforms)
    for start in range(0, len(by_length), batch_size):
        part = by_length[start : start + batch_size]
        samples = [Sample({"audio": (waveforms[i],)}, (turns(prompts[i], None),)) for i in part]
        for i, text in zip(part, model.generate(samples, **options), strict=True):
            texts[i] = text
    return texts


def _score(texts: list[str], spoken: Sequence[Spoken]) -> Mapping[str, float]:
    truths = [one.utterance.wanted for one in spoken]
    if all(one.utterance.task == "dialogue" for one in spoken):
        exact = sum(text == truth for text, truth in zip(texts, truths, strict=True)) / len(truths)
        if not any(spoken_form(truth) for truth in truths):  # a decoder may reply with dots alone, or nothing
            return {"exact": exact}
        return {"exact": exact, "wer": word_error_rate(texts, truths)}
    if all(one.utterance.task == "translate" for one in spoken):
        return {
            "exact": exact_rate(texts, truths),
            "wer": word_error_rate(texts, truths),
            "bleu": bleu(texts, truths),
            "chrf": chrf(texts, truths),
        }
    return {"wer": word_error_rate(texts, truths), "cer": character_error_rate(texts, truths)}


@dataclass(frozen=True)
class SpeechScores:
    """A set's scores with their controls, and seconds of work for a second of its own speech."""

    evaluation: Evaluation[Spoken]
    real_time_factor: float

    def metrics(self, name: str = "") -> dict[str, float]:
        """All numbers for `metrics.json`; the set's name comes first."""
        found = self.evaluation.metrics() | {"real_time_factor": self.real_time_factor}
        return {f"{name}_{key}" if name else key: value for key, value in found.items()}


def evaluate_speech(
    model: MultimodalModel, spoken: Sequence[Spoken], *, seed: int = 0, batch_size: int = 32, **options: Any
) -> SpeechScores:
    """WER and CER (of translations: exact match, WER, BLEU and chrF; of replies: exact match to the letter, and WER if
    any has words), each beside its two controls: another's speech, and silence.

    Nobody is given the speech of one who says the same. Options are those of `generate`; `num_beams` 1 is greedy.

    Raises:
        UserError: too few utterances, or the same words in more than half of them.
    """
    model.eval()
    speech = speech_of(model)
    own, seconds = list(range(len(spoken))), sum(len(one.waveform) for one in spoken) / speech.rate
    factors: list[float] = []

    def predict(samples: Sequence[Spoken], media_from: list[int | None]) -> list[str]:
        heard = [
            speech.blank(one.waveform) if source is None else samples[source].waveform
            for one, source in zip(samples, media_from, strict=True)
        ]
        started = time.perf_counter()
        texts = answer_speech(model, [one.prompt for one in samples], heard, batch_size=batch_size, **options)
        if media_from == own:
            factors.append((time.perf_counter() - started) / seconds)
        return texts

    rng = random.Random(f"controls/{seed}")
    found = with_controls(
        _score, predict, spoken, rng, media_of=lambda one: spoken_form(one.utterance.text), blank_name="silence"
    )
    return SpeechScores(found, factors[0])


def evaluate_sets(
    model: MultimodalModel,
    sets: Mapping[str, Sequence[Utterance]],
    *,
    seed: int = 0,
    batch_size: int = 32,
    max_new_tokens: int = 64,
    **options: Any,
) -> dict[str, SpeechScores]:
    """The scores of each set by its name; options as in `evaluate_speech`, which it raises as.

    What is replied to speech is compared with what the decoder replies to the words in text, by the same search.
    """
    options["max_new_tokens"] = max_new_tokens
    scores = {}
    for name, found in sets.items():
        spoken = read_spoken(model, with_replies(model, found, batch_size=batch_size, **options))
        scores[name] = evaluate_speech(model, spoken, seed=seed, batch_size=batch_size, **options)
    return scores


def all_metrics(scores: Mapping[str, SpeechScores]) -> dict[str, float]:
    """All numbers of several sets for `metrics.json`."""
    return {key: value for name, found in scores.items() for key, value in found.metrics(name).items()}
