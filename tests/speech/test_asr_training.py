"""Speech recognition on a frozen decoder: it learns what tones are called, its controls fail, and it can be saved,
loaded and stopped.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from multimodal.quantization import quantization_of
from multimodal.train.config import StageConfig
from speech.asr import SpeechSamples, evaluate_speech, prompt_of, read_spoken, speech_of
from speech.asr_training import AsrConfig, build_model, train_asr
from speech.conformer import ConformerConfig
from speech.encoder_folder import save_encoder
from speech.speech_adapter import SpeechAdapterConfig
from speech.speech_data import SpeechDataConfig, evaluation_sets, training_utterances
from tests.speech.made_speech import save_digits
from tests.speech.test_encoder_training import STILL
from tests.tiny_models import LOW_MEMORY, train_config

RATES = {"adapter": 5e-3, "encoder": 2e-3, "tokens": 5e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_digits(tmp_path_factory.mktemp("fsdd"))


def config(folder: Path, decoder: Path, run_dir: Path, **train: Any) -> AsrConfig:
    settings = {"learning_rates": RATES, "batch_size": 10, "precision": "fp32", "steps": 60} | train
    return AsrConfig(
        run_dir=run_dir,
        train=train_config(**settings),
        decoder=str(decoder),
        encoder=ConformerConfig(mels=20, width=32, layers=1, heads=2, ffn=64, dropout=0.0),
        adapter=SpeechAdapterConfig(width=32, heads=2, ffn=64),
        data=SpeechDataConfig(source=str(folder), dev_count=0, test_split="test", test_count=16, augment=STILL),
        max_new_tokens=8,
    )


@pytest.fixture(scope="module")
def trained(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AsrConfig, MultimodalModel, dict[str, float]]:
    run_dir = tmp_path_factory.mktemp("asr")
    # The built-in decoder has learnt to repeat; a random one would take far longer to be led.
    settings = config(folder, Path("builtin"), run_dir, steps=25)
    settings = replace(settings, ctc=StageConfig(steps=40), adapter_only=StageConfig(steps=5))
    model, result = train_asr(settings, report=lambda _: None)
    return settings, model, result.metrics()


def test_single_digits_are_recognised_and_the_controls_fail(trained: Any) -> None:
    _, _, metrics = trained
    assert metrics["wer"] <= 0.2, metrics
    assert metrics["wer_shuffled"] >= 0.75 and metrics["wer_silence"] >= 0.4
    assert metrics["real_time_factor"] > 0 and "connected_wer" in metrics and "cer" in metrics


def test_the_decoder_stays_itself_and_a_saved_adapter_says_the_same(trained: Any) -> None:
    settings, model, _ = trained
    loaded = MultimodalModel.from_pretrained(settings.run_dir / "adapter", device="cpu")
    assert loaded.decoder.sha256() == model.decoder.sha256()
    spoken = read_spoken(loaded, evaluation_sets(settings.data, seed=settings.train.seed)[""])
    again = evaluate_speech(loaded, spoken, max_new_tokens=8, num_beams=1)
    known = evaluate_speech(model, spoken, max_new_tokens=8, num_beams=1)
    assert again.evaluation.predictions == known.evaluation.predictions
    assert again.evaluation.metrics() == known.evaluation.metrics()
    searched = evaluate_speech(loaded, spoken, max_new_tokens=8, num_beams=2)
    assert searched.evaluation.scores["wer"].score <= 0.2


def test_a_test_set_that_cannot_be_read_is_refused_before_training(
    folder: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    wrong = config(folder, decoder_folder, tmp_path / "run")
    with pytest.raises(UserError, match="tset"):
        train_asr(replace(wrong, data=replace(wrong.data, test_split="tset")), report=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_a_test_that_is_refused_leaves_the_adapter(
    folder: Path, decoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserError("nothing to shuffle")

    monkeypatch.setattr("speech.asr_training.evaluate_sets", refuse)
    with pytest.raises(UserError, match="nothing to shuffle"):
        train_asr(config(folder, decoder_folder, tmp_path, steps=1), report=lambda _: None)
    assert "audio" in MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu").modalities


def test_stopped_and_resumed_is_the_same_to_the_bit(folder: Path, decoder_folder: Path, tmp_path: Path) -> None:
    flat = {"schedule": "constant", "warmup": 0}
    whole = config(folder, decoder_folder, tmp_path / "whole", steps=4, **flat)
    whole = replace(whole, data=replace(whole.data, test_split="", silence=0.3, batch_seconds=3))
    part = replace(whole, run_dir=tmp_path / "part", train=replace(whole.train, steps=2))
    expected = train_asr(whole, report=lambda _: None)[0].state_dict()
    train_asr(part, report=lambda _: None)
    found = train_asr(replace(part, train=whole.train, resume=True), report=lambda _: None)[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_it_trains_on_a_quantized_decoder_with_little_memory(
    folder: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    frugal = config(folder, decoder_folder, tmp_path, steps=2, **LOW_MEMORY)
    frugal = replace(
        frugal,
        decoder_quantize="fp8",
        ctc=StageConfig(steps=1),
        data=replace(frugal.data, test_split=""),
        checkpointing=True,
    )
    model, _ = train_asr(frugal, report=lambda _: None)
    again = MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert quantization_of(again.decoder.lm) == "fp8" and again.decoder.sha256() == model.decoder.sha256()
    pairs = zip(again.modalities.parameters(), model.modalities.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


def test_the_last_layers_of_an_encoder_may_begin_anew(
    trained: tuple[AsrConfig, MultimodalModel, dict[str, float]], tmp_path: Path
) -> None:
    settings, model, _ = trained
    save_encoder(speech_of(model).log_mel, speech_of(model).encoder, tmp_path)  # type: ignore[arg-type]
    saved = speech_of(model).encoder.state_dict()
    for fresh in (0, 1):
        again = build_model(replace(settings, encoder_weights=tmp_path, encoder_fresh_layers=fresh), [])
        found = speech_of(again).encoder.state_dict()
        moved = {name.split(".")[0] for name, t in found.items() if not torch.equal(t, saved[name].bfloat16().float())}
        assert moved == ({"layers"} if fresh else set())
    with pytest.raises(UserError, match="--encoder-fresh-layers 1: expected --encoder-weights"):
        replace(settings, encoder_fresh_layers=1)


def without_reply(config: AsrConfig) -> int:
    """Training utterances of dialogue to which the decoder replied nothing, by the replies of the run."""
    lines = (config.run_dir / "replies.jsonl").read_text().splitlines()[1:]
    empty = {line["said"] for line in map(json.loads, lines) if not line["text"]}
    utterances = training_utterances(config.data, seed=config.train.seed)
    return sum(u.task == "dialogue" and u.text in empty for u in utterances)


@pytest.mark.parametrize("loss", ["cross-entropy", "kl"])
def test_dialogue_is_trained_judged_and_resumed_with_the_same_replies(
    folder: Path, decoder_folder: Path, tmp_path: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = {"schedule": "constant", "warmup": 0}
    whole = config(folder, decoder_folder, tmp_path / "whole", steps=4, **flat)
    data = replace(whole.data, dialogue=0.5, silence=0.0)
    whole = replace(whole, data=data, dialogue_loss=loss, max_new_tokens=12)  # type: ignore[arg-type]
    said: list[str] = []
    model, result = train_asr(whole, report=said.append)
    silent = without_reply(whole)
    assert any(f"{silent} utterances of dialogue are left out" in line for line in said) == (silent > 0)
    assert {"dialogue_exact", "dialogue_exact_silence", "dialogue_wer_shuffled", "wer"} <= result.metrics().keys()
    part = replace(whole, run_dir=tmp_path / "part", train=replace(whole.train, steps=2))
    train_asr(part, report=lambda _: None)
    assert (part.run_dir / "replies.jsonl").read_text() == (whole.run_dir / "replies.jsonl").read_text()
    monkeypatch.setattr("speech.dialogue.text_replies", lambda *_, **__: pytest.fail("made anew"))
    rest = replace(part, train=whole.train, resume=True, data=replace(data, test_split=""))
    found = train_asr(rest, report=lambda _: None)[0].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_while_the_adapter_learns_alone_the_encoder_stands_still(
    folder: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    still = config(folder, decoder_folder, tmp_path / "still", steps=2, learning_rates=RATES | {"encoder": 0.0})
    still = replace(still, data=replace(still.data, test_split=""))
    one = train_asr(still, report=lambda _: None)[0]
    both = train_asr(replace(still, run_dir=tmp_path / "more", adapter_only=StageConfig(steps=3)), report=str)[0]
    encoders = [speech_of(model).encoder.state_dict() for model in (one, both)]
    adapters = [speech_of(model).adapter.state_dict() for model in (one, both)]
    assert all(torch.equal(encoders[0][name], encoders[1][name]) for name in encoders[0])
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_silence_is_learnt_as_nothing(trained: Any) -> None:
    import random

    settings, model, _ = trained
    utterances = settings.data.read("test")
    samples = SpeechSamples(model, utterances, silence=1.0)
    end = samples.sample(0, random.Random(0)).turns[0].answer  # type: ignore[union-attr]
    spoken = SpeechSamples(model, utterances).sample(0, random.Random(0))
    assert spoken is not None and spoken.turns[0].answer[-len(end) :] == end and len(spoken.turns[0].answer) > len(end)
    assert prompt_of("transcribe", "German") == "Repeat after me in German:"
    assert prompt_of("translate", "English").startswith("Translate the following sentence into English:")
