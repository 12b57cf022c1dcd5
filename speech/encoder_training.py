"""Train the speech encoder before any decoder: BEST-RQ on sound alone, or CTC on transcripts.

BEST-RQ is the paper's pre-training (section 8.2 / spec B2.1); CTC is the warm start that small data needs, from random
weights or from those of BEST-RQ.

Legend: B utterances, S samples, U tokens.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from multimodal.config import dump
from multimodal.errors import UserError
from multimodal.files import find_files
from multimodal.train.config import TrainConfig
from multimodal.train.loop import TrainResult, train
from multimodal.train.task import Task
from speech.audio import AUDIO_SUFFIXES
from speech.augment import Augment
from speech.best_rq import BestRQConfig, BestRQTask
from speech.conformer import Conformer, ConformerConfig
from speech.ctc import Characters, CTCHead
from speech.encoder import HubSpeechEncoder, SpeechFeatures
from speech.encoder_folder import load_encoder, read_encoder_config, save_encoder
from speech.features import LogMel, LogMelConfig
from speech.frames import SpeechBatch, pad_batch
from speech.speech_data import (
    SPOKEN,
    WRITERS,
    SpeechDataConfig,
    batches_by_seconds,
    dev_utterances,
    training_utterances,
)
from speech.spoken_texts import Writer
from speech.utterance import FileSound, Sound, Utterance, Waveforms
from speech.word_errors import character_error_rate, word_error_rate

STATISTICS_FROM = 500
"""So many utterances, drawn by the seed, give mean and deviation of the features."""


@dataclass(frozen=True, kw_only=True)
class SpeechEncoderConfig:
    """Pre-training or fine-tuning of the speech encoder."""

    run_dir: Path
    """The encoder is saved in its `encoder` subfolder."""
    train: TrainConfig
    objective: Literal["best-rq", "ctc"] = "best-rq"
    """best-rq needs sound alone, ctc transcripts."""
    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    weights: Path | None = None
    """Go on from an encoder folder, or "builtin", in its sizes."""
    fresh_layers: int = 0
    """So many of its last layers begin anew, as is good for CTC after BEST-RQ (`load_encoder`)."""
    best_rq: BestRQConfig = field(default_factory=BestRQConfig)
    data: SpeechDataConfig = field(default_factory=SpeechDataConfig)
    untranscribed: bool = False
    """best-rq: the source is a folder of sound without transcripts, all of which is used."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""

    def __post_init__(self) -> None:
        if self.fresh_layers and self.weights is None:
            raise UserError(f"--fresh-layers {self.fresh_layers} of a new encoder; expected --weights")


class FromWaveforms(nn.Module):
    """A task on features as one on waveforms: features are made on the device of the model.

    Args:
        log_mel: the features, with their statistics.
        task: BEST-RQ on the features.
    """

    def __init__(self, log_mel: LogMel, task: BestRQTask) -> None:
        super().__init__()
        self.log_mel, self.task = log_mel, task

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Those of the task."""
        return self.task.parts()

    def loss(self, batch: SpeechBatch) -> tuple[Tensor, int]:
        """The task's loss of waveforms [B, S]."""
        return self.task.loss(SpeechBatch(*self.log_mel(batch.padded, batch.lengths)))

    def log_values(self) -> dict[str, float]:
        """Those of the task."""
        return self.task.log_values()


@dataclass(frozen=True)
class CTCBatch:
    """Waveforms with their characters or tokens [B, U] and the number of those of each."""

    sound: SpeechBatch
    targets: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> "CTCBatch":
        return CTCBatch(self.sound.to(device), self.targets.to(device), self.lengths.to(device))


def collate_transcribed(
    samples: Sequence[tuple[Tensor, str]], log_mel: SpeechFeatures, encode: Callable[[str], list[int]]
) -> CTCBatch:
    """Waveforms with the token ids of their transcripts."""
    ids = [torch.tensor(encode(text)) for _, text in samples]
    targets_BU = nn.utils.rnn.pad_sequence([i.long() for i in ids], batch_first=True)
    return CTCBatch(log_mel.collate([w for w, _ in samples]), targets_BU, torch.tensor([len(i) for i in ids]))


class CTCTask(nn.Module):
    """Encoder and CTC head on the characters of transcripts; a `Task` of the training engine.

    Args:
        log_mel, encoder: they go on afterwards, the head does not.
        characters: those that are written.
        augment: SpecAugment in training.
    """

    def __init__(
        self,
        log_mel: SpeechFeatures,
        encoder: Conformer | HubSpeechEncoder,
        *,
        characters: Characters,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        self.log_mel, self.encoder, self.characters, self.augment = log_mel, encoder, characters, augment
        self.head = CTCHead(width=encoder.feature_dim, vocabulary=len(characters.names))
        self.left_out = 0
        """Utterances of training so far whose transcript is longer than their sound allows."""

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trainables: 'encoder', which is kept, and 'head', which is thrown away afterwards."""
        return {part: list(getattr(self, part).named_parameters(prefix=part)) for part in ("encoder", "head")}

    def collate(self, samples: Sequence[tuple[Tensor, str]]) -> CTCBatch:
        """Waveforms with their transcripts."""
        return collate_transcribed(samples, self.log_mel, self.characters.encode)

    def _hidden(self, sound: SpeechBatch) -> tuple[Tensor, Tensor]:
        frames = self.log_mel.frames(sound)
        if self.training and self.augment is not None:
            frames = self.log_mel.masked(frames, settings=self.augment, rng=torch.default_generator)
        return self.encoder(frames.padded, frames.lengths), self.encoder.output_length(frames.lengths)

    def loss(self, batch: CTCBatch) -> tuple[Tensor, int]:
        """Summed CTC loss and the number of characters."""
        found = self.head.loss(*self._hidden(batch.sound), batch.targets, batch.lengths)
        self.left_out += found.skipped if self.training else 0
        return found.total, found.tokens

    def log_values(self) -> dict[str, float]:
        """How many utterances had no place for their transcript since the run began or went on."""
        return {"ctc_left_out": float(self.left_out)}

    @torch.no_grad()
    def transcribe(self, waveforms: Sequence[Tensor]) -> list[str]:
        """Greedy transcripts of one batch."""
        sound = self.log_mel.collate(waveforms).to(self.head.linear.weight.device)
        return [self.characters.decode(ids) for ids in self.head.decode(*self._hidden(sound))]


class TranscribedSamples:
    """Waveforms with their transcripts as training samples.

    Args:
        utterances: those to be transcribed are taken.
        log_mel: whose rate the waveforms have, and whose longest they do not exceed.
        data: augmentation, and what is done with broken recordings.

    Raises:
        UserError: there are none to take.
    """

    def __init__(self, utterances: Sequence[Utterance], *, log_mel: SpeechFeatures, data: SpeechDataConfig) -> None:
        self.utterances = [u for u in utterances if u.task == "transcribe"]
        if not self.utterances:
            raise UserError("CTC: no utterance to transcribe in the training data; expected transcripts")
        sounds = [(u.sound, u.id) for u in self.utterances]
        self.waveforms = Waveforms(
            sounds,
            rate=log_mel.rate,
            augment=data.augment,
            heard_seconds=log_mel.longest_seconds,
            keep_mb=data.keep_mb,
            on_error=data.on_error,
        )

    def __len__(self) -> int:
        return len(self.utterances)

    def sample(self, index: int, rng: random.Random) -> tuple[Tensor, str] | None:
        waveform_S = self.waveforms.sample(index, rng)
        return None if waveform_S is None else (waveform_S, self.utterances[index].text)


def fit_statistics(log_mel: LogMel, sounds: Sequence[tuple[Sound, str]], *, seed: int) -> None:
    """Set the statistics of the features to those of some of the sounds, drawn by the seed.

    Raises:
        UserError: none of them can be read.
    """
    chosen = random.Random(f"statistics/{seed}").sample(list(sounds), min(STATISTICS_FROM, len(sounds)))
    waveforms = Waveforms(chosen, rate=log_mel.config.rate, longest="crop")
    found = (waveforms.sample(i, random.Random(i)) for i in range(len(waveforms)))
    log_mel.fit_statistics(waveform_S for waveform_S in found if waveform_S is not None)


def build_encoder(config: SpeechEncoderConfig, sounds: Sequence[tuple[Sound, str]]) -> tuple[LogMel, Conformer]:
    """Features and encoder: new, with statistics of the sounds, or those of an encoder folder.

    Raises:
        UserError: the folder, or every sound, cannot be read.
    """
    seed, weights = config.train.seed, config.weights
    torch.manual_seed(seed)
    sizes = config.encoder if weights is None else read_encoder_config(weights)
    log_mel, encoder = LogMel(LogMelConfig(channels=sizes.mels)), Conformer(sizes)
    if weights is None:
        fit_statistics(log_mel, sounds, seed=seed)
    else:
        load_encoder(log_mel, encoder, weights, fresh_layers=config.fresh_layers)
    return log_mel, encoder


def train_best_rq(config: SpeechEncoderConfig, *, writers: Sequence[Writer] = WRITERS) -> TrainResult:
    """Pre-train on sound alone and save the encoder.

    Raises:
        UserError: anything the user can put right.
    """
    data = config.data
    if config.untranscribed:
        if data.source == SPOKEN:
            raise UserError("--untranscribed: expected --data.source to be a folder of sound")
        files = find_files([data.source], AUDIO_SUFFIXES, what="sound")
        sounds: list[tuple[Sound, str]] = [(FileSound(path), str(path)) for path in files]
    else:
        sounds = [(u.sound, u.id) for u in training_utterances(data, seed=config.train.seed, writers=writers)]
    log_mel, encoder = build_encoder(config, sounds)
    waveforms = Waveforms(
        sounds,
        rate=log_mel.config.rate,
        augment=data.augment,
        longest="crop",
        keep_mb=data.keep_mb,
        on_error=data.on_error,
    )
    result = train(
        task=FromWaveforms(log_mel, BestRQTask(encoder, config.best_rq)),
        dataset=waveforms,
        collate=pad_batch,
        config=config.train,
        run_dir=config.run_dir,
        resume=config.resume,
        config_yaml=dump(config),
        order=batches_by_seconds(waveforms, data, config.train),
    )
    save_encoder(log_mel, encoder, config.run_dir / "encoder")
    return result


def ctc_task(
    log_mel: SpeechFeatures,
    encoder: Conformer | HubSpeechEncoder,
    utterances: Sequence[Utterance],
    *,
    data: SpeechDataConfig,
) -> tuple[CTCTask, TranscribedSamples]:
    """To fine-tune an encoder by CTC on the characters of transcripts: the task, and its samples.

    Raises:
        UserError: there is no utterance to transcribe.
    """
    samples = TranscribedSamples(utterances, log_mel=log_mel, data=data)
    characters = Characters.of(u.text for u in samples.utterances)
    return CTCTask(log_mel, encoder, characters=characters, augment=data.augment), samples


class Transcribes(Protocol):
    """What writes transcripts of waveforms at the rate of its features."""

    @property
    def log_mel(self) -> SpeechFeatures: ...

    def transcribe(self, waveforms: Sequence[Tensor]) -> list[str]: ...


class TranscribingTask(Task, Transcribes, Protocol):
    """A task that learns from waveforms with their transcripts."""

    def collate(self, samples: Sequence[tuple[Tensor, str]]) -> CTCBatch: ...


def train_transcribing(
    task: TranscribingTask,
    samples: TranscribedSamples,
    dev: Sequence[Utterance],
    *,
    data: SpeechDataConfig,
    settings: TrainConfig,
    run_dir: Path,
    resume: bool,
    config_yaml: str,
) -> TrainResult:
    """Train on transcripts; `ctc_wer` and `ctc_cer` on `dev` come with the result.

    Raises:
        UserError: anything the user can put right.
    """
    return train(
        task=task,
        dataset=samples,
        collate=task.collate,
        config=settings,
        run_dir=run_dir,
        resume=resume,
        evaluate=(lambda step: ctc_scores(task, dev)) if dev else None,
        config_yaml=config_yaml,
        order=batches_by_seconds(samples.waveforms, data, settings),
    )


def ctc_scores(task: Transcribes, utterances: Sequence[Utterance], *, batch_size: int = 32) -> dict[str, float]:
    """WER and CER of greedy transcripts."""
    sounds, log_mel = [(u.sound, u.id) for u in utterances], task.log_mel
    waveforms = Waveforms(sounds, rate=log_mel.rate, heard_seconds=log_mel.longest_seconds)
    found = [(waveforms.sample(i, random.Random(i)), u.text) for i, u in enumerate(utterances)]
    kept: list[tuple[Any, str]] = sorted(((w, t) for w, t in found if w is not None), key=lambda pair: len(pair[0]))
    said = [
        text
        for start in range(0, len(kept), batch_size)
        for text in task.transcribe([w for w, _ in kept[start : start + batch_size]])
    ]
    truths = [text for _, text in kept]
    return {"ctc_wer": word_error_rate(said, truths), "ctc_cer": character_error_rate(said, truths)}


def pretrain_speech_encoder(config: SpeechEncoderConfig, *, writers: Sequence[Writer] = WRITERS) -> TrainResult:
    """Train the encoder by the objective and save it in `run_dir/encoder`.

    Raises:
        UserError: anything the user can put right.
    """
    if config.objective == "best-rq":
        return train_best_rq(config, writers=writers)
    seed, data = config.train.seed, config.data
    utterances = training_utterances(data, seed=seed, writers=writers)
    dev = dev_utterances(data, seed=seed, writers=writers)
    log_mel, encoder = build_encoder(config, [(u.sound, u.id) for u in utterances])
    task, samples = ctc_task(log_mel, encoder, utterances, data=data)
    result = train_transcribing(
        task,
        samples,
        dev,
        data=data,
        settings=config.train,
        run_dir=config.run_dir,
        resume=config.resume,
        config_yaml=dump(config),
    )
    save_encoder(log_mel, encoder, config.run_dir / "encoder")
    return result
