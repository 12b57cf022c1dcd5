"""Encoders before any decoder: CTC learns what tones are called, BEST-RQ needs sound alone, both go on after a stop."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multimodal.data.tables import read_text
from multimodal.errors import UserError
from speech.augment import Augment
from speech.best_rq import BestRQConfig
from speech.conformer import Conformer, ConformerConfig
from speech.ctc import Characters
from speech.encoder_folder import load_encoder, read_encoder_config, save_encoder
from speech.encoder_training import (
    CTCTask,
    SpeechEncoderConfig,
    TranscribedSamples,
    build_encoder,
    pretrain_speech_encoder,
)
from speech.features import LogMel, LogMelConfig
from speech.speech_data import SpeechDataConfig, training_utterances
from speech.spoken import Voice, speak
from speech.spoken_data import SpokenSound
from tests.speech.made_speech import save_digits, tone
from tests.tiny_models import train_config

TINY = ConformerConfig(mels=20, width=32, layers=1, heads=2, ffn=64, dropout=0.0)
STILL = Augment(speeds=(1.0,), noise_chance=0, time_masks=0, channel_masks=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_digits(tmp_path_factory.mktemp("fsdd"))


def config(folder: Path, run_dir: Path, objective: Any, **train: Any) -> SpeechEncoderConfig:
    part = "head" if objective == "ctc" else "heads"
    settings = {"learning_rates": {"encoder": 3e-3, part: 3e-3}, "batch_size": 8, "precision": "fp32"} | train
    return SpeechEncoderConfig(
        run_dir=run_dir,
        train=train_config(**settings),
        objective=objective,
        encoder=TINY,
        best_rq=BestRQConfig(codebooks=2, entries=16),
        data=SpeechDataConfig(source=str(folder), dev_count=6, batch_seconds=4, augment=STILL),
    )


def log(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_text(run_dir / "log.jsonl", expected="").splitlines()]


def encoder_of(run_dir: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(run_dir / "encoder" / "encoder.safetensors")


def test_ctc_learns_what_tones_are_called(folder: Path, tmp_path: Path) -> None:
    result = pretrain_speech_encoder(config(folder, tmp_path / "run", "ctc", steps=90))
    assert result.metrics["ctc_wer"] <= 0.2, result.metrics
    losses = [line["loss"] for line in log(tmp_path / "run") if line.get("loss") is not None]
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("objective", ["ctc", "best-rq"])
def test_stopped_and_resumed_is_the_same_to_the_bit(folder: Path, tmp_path: Path, objective: str) -> None:
    first = config(folder, tmp_path / "parts", objective, steps=2, schedule="constant", warmup=0)
    straight = config(folder, tmp_path / "straight", objective, steps=4, schedule="constant", warmup=0)
    pretrain_speech_encoder(straight)
    pretrain_speech_encoder(first)
    pretrain_speech_encoder(replace(first, train=straight.train, resume=True))
    expected, found = encoder_of(tmp_path / "straight"), encoder_of(tmp_path / "parts")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_best_rq_needs_no_transcripts_and_logs_its_codes(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, tmp_path / "run", "best-rq", steps=3)
    data = replace(settings.data, source=str(folder / "recordings"))
    pretrain_speech_encoder(replace(settings, untranscribed=True, data=data))
    assert {"code_usage.0", "code_perplexity.1", "accuracy_above_unigram"} <= log(tmp_path / "run")[-1].keys()
    warm = replace(config(folder, tmp_path / "ctc", "ctc", steps=1), weights=tmp_path / "run" / "encoder")
    pretrain_speech_encoder(warm)
    statistics = [encoder_of(tmp_path / run)["log_mel.mean_C"] for run in ("run", "ctc")]
    assert torch.equal(*statistics)


def test_characters_that_are_not_known_are_left_out() -> None:
    characters = Characters.of(["seven no"])
    task = CTCTask(LogMel(LogMelConfig(channels=20)), Conformer(TINY), characters=characters)
    batch = task.collate([(tone(1), "Seven, zero!"), (tone(2), "")])
    assert batch.lengths.tolist() == [len("seven eo"), 0]
    loss, tokens = task.loss(batch)
    assert torch.isfinite(loss) and tokens == task.train().loss(batch)[1]


def test_ctc_writes_what_is_said_and_no_translation() -> None:
    data = SpeechDataConfig(sentences=4, translations=30)
    samples = TranscribedSamples(training_utterances(data, seed=0), log_mel=LogMel(LogMelConfig()), data=data)
    assert len(samples) == 4 + 40
    assert {u.language for u in samples.utterances} == {"English", "German", "French", "Spanish", "Italian"}
    assert all(u.text == u.sound.text for u in samples.utterances if isinstance(u.sound, SpokenSound))


def test_an_encoder_folder_gives_the_encoder_back(tmp_path: Path) -> None:
    log_mel, encoder = LogMel(LogMelConfig(channels=20)), Conformer(TINY)
    log_mel.fit_statistics([tone(1)])
    save_encoder(log_mel, encoder, tmp_path)
    assert read_encoder_config(tmp_path) == TINY
    other = LogMel(LogMelConfig(channels=20)), Conformer(TINY)
    load_encoder(*other, tmp_path)
    assert torch.equal(other[0].mean_C, log_mel.mean_C)
    for found, saved in zip(other[1].parameters(), encoder.parameters(), strict=True):
        assert torch.equal(found, saved.bfloat16().float())
    with pytest.raises(UserError, match="does not fit the encoder's sizes"):
        load_encoder(other[0], Conformer(replace(TINY, layers=2)), tmp_path)
    with pytest.raises(UserError, match="expected a folder written by pretrain_speech_encoder"):
        read_encoder_config(tmp_path / "none")


def test_the_last_layers_may_begin_anew(folder: Path, tmp_path: Path) -> None:
    deep = replace(TINY, layers=3)
    saved, begun = Conformer(deep), Conformer(deep)
    save_encoder(LogMel(LogMelConfig(channels=20)), saved, tmp_path / "encoder")
    drawn = {name: tensor.clone() for name, tensor in begun.state_dict().items()}
    load_encoder(LogMel(LogMelConfig(channels=20)), begun, tmp_path / "encoder", fresh_layers=1)
    for name, tensor in begun.state_dict().items():
        expected = drawn[name] if name.startswith("layers.2.") else saved.state_dict()[name].bfloat16().float()
        assert torch.equal(tensor, expected), name
    with pytest.raises(UserError, match="4 fresh layers of an encoder that has 3"):
        load_encoder(LogMel(LogMelConfig(channels=20)), begun, tmp_path / "encoder", fresh_layers=4)
    run = config(folder, tmp_path / "run", "ctc", steps=1)
    with pytest.raises(UserError, match="expected --weights"):
        replace(run, fresh_layers=1)
    runs = {n: replace(run, weights=tmp_path / "encoder", run_dir=tmp_path / str(n), fresh_layers=n) for n in (0, 1)}
    built = [build_encoder(one, [])[1].state_dict() for one in runs.values()]
    changed = {name for name, tensor in built[0].items() if not torch.equal(tensor, built[1][name])}
    assert changed and all(name.startswith("layers.2.") for name in changed)


def test_the_builtin_encoder_hears_its_voices_apart_by_their_words() -> None:
    """Frames of one word in two voices are more alike than frames of two words in one voice."""
    pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed (pip install espeakng-loader)")
    config = read_encoder_config(Path("builtin"))
    log_mel, encoder = LogMel(LogMelConfig(channels=config.mels)), Conformer(config).eval()
    load_encoder(log_mel, encoder, Path("builtin"))

    def heard(text: str, variant: str) -> Tensor:
        sound = log_mel.collate([speak(text, voice=Voice("en-us", variant))])
        frames = log_mel.frames(sound)
        with torch.no_grad():
            return encoder(frames.padded, frames.lengths)[0].mean(dim=0)

    seven, other_word, other_voice = heard("seven", "quincy"), heard("nineteen", "quincy"), heard("seven", "f3")
    alike = torch.nn.CosineSimilarity(dim=0)
    assert alike(seven, other_voice) > alike(seven, other_word)
