"""Train speech recognition, translation and dialogue on a frozen decoder: encoder and adapter jointly (Llama 3 paper,
section 8.2 / spec B5), after a CTC warm start of the encoder and a stage of the adapter alone, which small data needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from multimodal.adapter_merge import START
from multimodal.config import dump
from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from multimodal.pretrained import BUILTIN, load_for_training
from multimodal.quantization import DecoderQuantization
from multimodal.train.config import StageConfig, TrainConfig
from multimodal.train.loop import TrainResult, train
from speech.alignment import AlignmentTask
from speech.asr import SpeechSamples, SpeechScores, all_metrics, evaluate_sets, evaluate_speech, read_spoken, speech_of
from speech.conformer import Conformer, ConformerConfig
from speech.dialogue import DialogueLoss, with_replies, without_empty_replies
from speech.encoder_folder import load_encoder, read_encoder_config
from speech.encoder_training import TranscribedSamples, ctc_task, fit_statistics, train_transcribing
from speech.features import LogMel
from speech.speech_adapter import SpeechAdapterConfig
from speech.speech_data import (
    WRITERS,
    SpeechDataConfig,
    batches_by_seconds,
    dev_utterances,
    evaluation_sets,
    training_utterances,
)
from speech.speech_modality import SpeechConfig
from speech.spoken_texts import Writer
from speech.utterance import Utterance

CTC_RATES = {"encoder": 2e-3, "head": 2e-3}


@dataclass(frozen=True, kw_only=True)
class AsrConfig:
    """Train a speech adapter on a frozen decoder."""

    run_dir: Path
    """Folder for logs, checkpoints and the adapter."""
    train: TrainConfig
    decoder: str = BUILTIN
    """"builtin", a folder, or a name of the hub."""
    decoder_quantize: DecoderQuantization = "none"
    """Keep the weights of its linear layers in 8 bits (needs the extra: pip install graft-multimodal[quantize])."""
    encoder: ConformerConfig = field(default_factory=ConformerConfig)
    encoder_name: str = ""
    """Hub name or folder of a speech encoder of transformers (Whisper, wav2vec2-BERT, Parakeet); empty: a conformer."""
    encoder_taps: tuple[int, ...] = ()
    """Its layers whose outputs join the last hidden states, counted from 1; none for a conformer."""
    encoder_weights: Path | None = None
    """Encoder folder of `pretrain_speech_encoder`, or "builtin", whose sizes are taken."""
    encoder_fresh_layers: int = 0
    """So many of its last layers begin anew, as is good for CTC after BEST-RQ (`load_encoder`)."""
    adapter: SpeechAdapterConfig = field(default_factory=SpeechAdapterConfig)
    data: SpeechDataConfig = field(default_factory=SpeechDataConfig)
    ctc: StageConfig = field(default_factory=StageConfig)
    """The encoder alone learns to spell, before it meets the decoder."""
    align: StageConfig = field(default_factory=StageConfig)
    """Adapter and encoder learn to hand over the tokens of the transcripts, held and with pauses, by CTC. Needs a
    decoder with a token for a pause, as the built-in one."""
    adapter_only: StageConfig = field(default_factory=StageConfig)
    """The adapter learns while the encoder stands still."""
    dialogue_loss: DialogueLoss = "cross-entropy"
    """How the decoder's replies are learnt (data.dialogue): their tokens, or its distribution at each of them (KL)."""
    beams: int = 1
    """Beam search width in the test; 1 = greedy."""
    max_new_tokens: int = 64
    """Of an answer in the test, and of a reply that is learnt."""
    checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    resume: bool = False
    """Go on from the newest checkpoint of the run folder."""

    def __post_init__(self) -> None:
        if self.encoder_name and self.encoder_weights is not None:
            raise UserError(
                f"--encoder-weights {self.encoder_weights}: {self.encoder_name} brings its own; expected one of the two"
            )
        if self.encoder_fresh_layers and self.encoder_weights is None:
            raise UserError(f"--encoder-fresh-layers {self.encoder_fresh_layers}: expected --encoder-weights")
        if self.encoder_taps and not self.encoder_name:
            raise UserError(f"--encoder-taps {self.encoder_taps}: a conformer has none; expected --encoder-name")
        if self.ctc.steps and not self.ctc_settings().learning_rates["encoder"]:
            raise UserError(
                f"--ctc.steps {self.ctc.steps}: the encoder's rate is 0, so that nothing would be learnt; expected "
                "--ctc.steps 0, or --ctc.learning-rates with a rate of the encoder"
            )

    @property
    def encoder_sizes(self) -> ConformerConfig:
        """Of the conformer: those of its weights, where there are any.

        Raises:
            UserError: no encoder folder.
        """
        return self.encoder if self.encoder_weights is None else read_encoder_config(self.encoder_weights)

    def ctc_settings(self) -> TrainConfig:
        """Of the CTC warm start. A hub encoder has been trained before: it keeps the rate of the main stage."""
        rates = CTC_RATES
        if self.encoder_name:
            rates = rates | {"encoder": self.train.learning_rates.get("encoder", 0.0)}
        return self.ctc.settings(self.train, rates=rates)


@dataclass(frozen=True)
class AsrResult:
    """What a run did: the last stage, and the scores of each set by its name ("" is the main one)."""

    trained: TrainResult
    scores: dict[str, SpeechScores]

    def metrics(self) -> dict[str, float]:
        """All numbers for `metrics.json`."""
        return all_metrics(self.scores)


def build_model(config: AsrConfig, utterances: Sequence[Utterance]) -> MultimodalModel:
    """The frozen decoder with a new speech adapter, on the device of the run.

    Args:
        utterances: whose sound gives the statistics of the features, where no encoder is given.

    Raises:
        UserError: decoder or encoder cannot be loaded, or no sound read.
    """
    decoder, tokenizer = load_for_training(config.decoder, config.train, quantization=config.decoder_quantize)
    torch.manual_seed(config.train.seed)
    model = MultimodalModel(decoder, tokenizer, decoder_name=config.decoder)
    weights = config.encoder_weights
    model.add(
        "audio",
        SpeechConfig(
            encoder=config.encoder_sizes,
            encoder_name=config.encoder_name,
            encoder_taps=config.encoder_taps,
            adapter=config.adapter,
        ),
    )
    speech = speech_of(model)
    speech.augment = config.data.augment
    log_mel, encoder = speech.log_mel, speech.encoder
    if isinstance(log_mel, LogMel) and isinstance(encoder, Conformer):  # another encoder comes with its features
        if weights is None:
            fit_statistics(log_mel, [(u.sound, u.id) for u in utterances], seed=config.train.seed)
        else:
            load_encoder(log_mel, encoder, weights, fresh_layers=config.encoder_fresh_layers)
    if config.checkpointing:
        decoder.enable_gradient_checkpointing()
        speech.encoder.enable_gradient_checkpointing()
    return model


def _warm_start(
    config: AsrConfig, model: MultimodalModel, utterances: Sequence[Utterance], dev: Sequence[Utterance]
) -> None:
    speech = speech_of(model)
    task, samples = ctc_task(speech.log_mel, speech.encoder, utterances, data=config.data)
    train_transcribing(
        task,
        samples,
        dev,
        data=config.data,
        settings=config.ctc_settings(),
        run_dir=config.run_dir / "ctc",
        resume=config.resume,
        config_yaml=dump(config),
    )


def align(
    config: AsrConfig, model: MultimodalModel, utterances: Sequence[Utterance], dev: Sequence[Utterance]
) -> TrainResult:
    """The stage of that name; what it did, with `ctc_wer` and `ctc_cer` on `dev`."""
    rates = {part: rate for part, rate in config.train.learning_rates.items() if part != "tokens"}
    settings, task = config.align.settings(config.train, rates=rates), AlignmentTask(model)
    return train_transcribing(
        task,
        TranscribedSamples(utterances, log_mel=task.log_mel, data=config.data),
        dev,
        data=config.data,
        settings=settings,
        run_dir=config.run_dir / "align",
        resume=config.resume,
        config_yaml=dump(config),
    )


def _stage(
    config: AsrConfig,
    model: MultimodalModel,
    settings: TrainConfig,
    name: str,
    utterances: Sequence[Utterance],
    dev: Sequence[Utterance],
) -> TrainResult:
    data = config.data
    samples = SpeechSamples(
        model,
        utterances,
        augment=data.augment,
        silence=data.silence,
        dialogue_loss=config.dialogue_loss,
        keep_mb=data.keep_mb,
        on_error=data.on_error,
    )
    heard = read_spoken(model, dev) if dev else []

    def evaluate(step: int) -> dict[str, float]:
        return evaluate_speech(model, heard, max_new_tokens=config.max_new_tokens).metrics()

    return train(
        task=model,
        dataset=samples,
        collate=model.collate,
        config=settings,
        run_dir=config.run_dir / name,
        resume=config.resume,
        evaluate=evaluate if heard else None,
        config_yaml=dump(config),
        order=batches_by_seconds(samples.waveforms, data, settings),
        start_counts=config.align.steps > 0 or (name == "joint" and config.adapter_only.steps > 0),
    )


def train_asr(
    config: AsrConfig, *, writers: Sequence[Writer] = WRITERS, report: Callable[[str], None] = print
) -> tuple[MultimodalModel, AsrResult]:
    """All stages; the trained model, its adapter saved in `run_dir/adapter`, and what the run did.

    Args:
        writers: of the built-in sentences.

    Raises:
        UserError: anything the user can put right.
    """
    data, seed = config.data, config.train.seed
    utterances = training_utterances(data, seed=seed, writers=writers)
    dev = dev_utterances(data, seed=seed, writers=writers)
    sets = evaluation_sets(data, seed=seed, writers=writers)
    model = build_model(config, utterances)
    sha256, start = model.decoder.sha256(), model.modalities_sha256()
    report(f"a token of speech stands for {1000 * speech_of(model).embedding_seconds:g} ms")
    kept = config.run_dir / "replies.jsonl"
    found = with_replies(model, utterances, max_new_tokens=config.max_new_tokens, kept=kept)
    utterances = without_empty_replies(found)
    if len(utterances) < len(found):
        report(
            f"{len(found) - len(utterances)} utterances of dialogue are left out: the decoder replies nothing to them"
        )
    if config.ctc.steps:
        _warm_start(config, model, utterances, dev)
    if config.align.steps:
        align(config, model, utterances, dev)
    if config.adapter_only.steps:
        rates = config.train.learning_rates | {"encoder": 0.0}
        _stage(config, model, config.adapter_only.settings(config.train, rates=rates), "adapter_only", utterances, dev)
    trained = _stage(config, model, config.train, "joint", utterances, dev)
    if model.decoder.sha256() != sha256:
        raise RuntimeError("the frozen decoder's weights have changed; this is a defect of Graft")
    recipe: Mapping[str, Any] = {START: start} | asdict(config)
    adapter = config.run_dir / "adapter"
    model.save_pretrained(adapter, recipe=recipe, metrics=trained.metrics)  # whatever becomes of the test
    options = {"num_beams": config.beams, "max_new_tokens": config.max_new_tokens}
    result = AsrResult(trained, evaluate_sets(model, sets, seed=seed, **options))
    model.save_pretrained(adapter, recipe=recipe, metrics=trained.metrics | result.metrics())
    if trained.skipped:
        report(f"{trained.skipped} samples with broken recordings were skipped")
    report(f"adapter saved in {adapter} ({trained.steps} steps, {trained.seconds:.0f} s)")
    return model, result
