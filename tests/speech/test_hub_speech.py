"""Speech encoders of `transformers` in the whole model: each of three families trained, saved by name, loaded again.

Tiny random models in folders of their own; Whisper's hears one second at once.
"""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from multimodal.text_proof import decoder_proof
from multimodal.train.config import StageConfig
from speech.asr import SpeechSamples, evaluate_speech, read_spoken, speech_of
from speech.asr_training import AsrConfig, build_model, train_asr
from speech.augment import Augment
from speech.encoder import HubSpeechEncoder
from speech.speech_adapter import SpeechAdapterConfig
from speech.speech_data import SpeechDataConfig
from speech.speech_modality import MARKS, SpeechConfig
from speech.transcribing import transcribe
from tests.speech.made_speech import save, tone
from tests.speech.test_encoder import MODELS, extractor
from tests.speech.test_speech_modality import ask, logits, sound
from tests.speech.test_transcribing import talk
from tests.tiny_models import picture, tiny_model, train_config

FAMILIES = ("whisper", "wav2vec2-bert", "parakeet")
ADAPTER = SpeechAdapterConfig(width=16, heads=2, ffn=32)
MILLISECONDS = {"whisper": 40, "wav2vec2-bert": 40, "parakeet": 160}
RATES = {"adapter": 5e-3, "encoder": 0.0, "tokens": 5e-3}
TRAINED = RATES | {"encoder": 1e-3}
PLACE = "modalities.audio.encoder.model"


def save_model(family: str, folder: Path) -> Path:
    """A model folder as the hub has it."""
    torch.manual_seed(0)
    MODELS[family]().save_pretrained(folder)
    extractor(family).save_pretrained(folder)
    return folder


def save_recordings(folder: Path) -> Path:
    """A folder with transcript tables."""
    for split, count in {"train": 6, "test": 4}.items():
        files = [save(folder / f"{split}{i}.wav", tone(1 + i, seconds=0.4 + 0.05 * i)) for i in range(count)]
        words = ("one", "two", "three", "four", "five", "six")
        lines = [f"{file.name}\t{word}" for file, word in zip(files, words[: len(files)], strict=True)]
        (folder / f"{split}.tsv").write_text("\n".join(["audio\ttext", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hub")
    return {family: save_model(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_recordings(tmp_path_factory.mktemp("recordings"))


def config(encoder: Path, recordings: Path, decoder: Path, run_dir: Path, **changes: Any) -> AsrConfig:
    """Two steps with SpecAugment, on a frozen encoder."""
    settings: dict[str, Any] = {"learning_rates": RATES, "batch_size": 4, "precision": "fp32"}
    data = SpeechDataConfig(source=str(recordings), dev_count=0, test_split="test", silence=0.2)
    plain: dict[str, Any] = {"encoder_name": str(encoder), "adapter": ADAPTER, "data": data, "max_new_tokens": 4}
    train = train_config(**settings | changes.pop("train", {}))
    return AsrConfig(run_dir=run_dir, train=train, decoder=str(decoder), **plain | changes)


def silent(config: AsrConfig) -> MultimodalModel:
    return train_asr(config, report=lambda _: None)[0]


def with_speech(folder: Path) -> MultimodalModel:
    model = tiny_model()
    torch.manual_seed(7)
    model.add("audio", SpeechConfig(encoder_name=str(folder), adapter=ADAPTER))
    with torch.no_grad():
        model.decoder.extra_embedding.weight.normal_(std=0.05)
    return model.eval()


def transcripts(model: MultimodalModel, data: SpeechDataConfig) -> list[str]:
    return evaluate_speech(model, read_spoken(model, data.read("test")), max_new_tokens=4).evaluation.predictions


# ---- one sample and a batch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_from_waveform_to_logits_every_sample_is_in_a_batch_as_alone(family: str, folders: dict[str, Path]) -> None:
    model = with_speech(folders[family])
    chats = [
        ask("Repeat:", sound(0.31, seed=1)),
        ask("Repeat:", sound(0.97, seed=2)),
        ask("First", sound(0.5, seed=3), "then", sound(0.05, seed=4)),
        ask("One two three."),
        ask(picture(seed=1), sound(0.4, seed=5), "Describe the image."),
    ]
    samples = [model.sample(chat, "One two.") for chat in chats]
    batch = model.collate(samples)
    together = logits(model, batch)
    for row, sample in enumerate(samples):
        alone = model.collate([sample])
        length = alone.input_ids.shape[1]
        torch.testing.assert_close(together[row, :length], logits(model, alone)[0], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        deaf = model.decoder(batch.input_ids, batch.attention_mask, memory=model.memory(batch))
    heard = (together - deaf).abs().amax((1, 2))
    assert heard[[0, 1, 2, 4]].min() > 1e-3 and heard[3] == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.4321, 1.0])
def test_a_recording_takes_a_token_for_every_embedding(family: str, folders: dict[str, Path], seconds: float) -> None:
    model = with_speech(folders[family])
    speech = speech_of(model)
    assert isinstance(speech.encoder, HubSpeechEncoder) and speech.rate == 16_000
    batch = model.collate([model.sample(ask("Repeat:", sound(seconds)))])
    waveform = sound(max(seconds, 0.1))
    waveform[len(sound(seconds)) :] = 0  # shorter speech gets silence behind it
    waveform[: len(sound(seconds))] = sound(seconds)
    frames = len(speech.encoder.features(waveform))
    expected = speech.adapter.output_length(speech.encoder.output_length(frames))
    ids, first = batch.input_ids[0].tolist(), model.decoder.vocab_size
    assert ids.index(first + MARKS[1]) - ids.index(first + MARKS[0]) - 1 == expected
    with torch.no_grad():
        assert [len(found) for found in model.inserted(batch).values()] == [expected]
    assert round(1000 * speech.embedding_seconds) == MILLISECONDS[family]
    # Windows that are full of samples, and Whisper's that reach beyond the end, make a frame more or less.
    assert abs(expected * speech.embedding_seconds - max(seconds, 0.1)) < 1.5 * speech.embedding_seconds


def test_what_is_longer_than_the_window_is_one_line_and_transcribe_cuts_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = with_speech(folders["whisper"])
    with pytest.raises(UserError, match=r"speech of 1\.20 s, the encoder hears at most 1 s at once") as error:
        model.sample(ask("Repeat:", sound(1.2)))
    assert "\n" not in str(error.value)
    heard: list[Tensor] = []
    speech: Any = speech_of(model)
    collate = speech.log_mel.collate
    speech.log_mel.collate = lambda waveforms: (heard.extend(waveforms), collate(waveforms))[1]
    file = save(tmp_path / "talk.wav", talk([(0.3, 4.0), (5.0, 5.02)], seconds=5.02), rate=16_000)
    list(transcribe(model, file, max_new_tokens=2))
    assert len(heard) >= 5 and max(len(waveform) for waveform in heard) <= 16_000
    assert sum(len(waveform) for waveform in heard) >= 16_000 * 3.7


# ---- training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frozen_encoder_is_named_in_the_folder_and_says_the_same_again(
    family: str, folders: dict[str, Path], recordings: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    settings = config(folders[family], recordings, decoder_folder, tmp_path / "run")
    model = silent(settings)
    assert decoder_proof(model).text_logits_max_abs_diff == 0
    assert speech_of(model).encoder.borrowed is not None  # type: ignore[union-attr]
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter.safetensors")
    assert not any(name.startswith("modalities.audio.encoder") for name in tensors) and len(tensors) > 10
    saved = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert saved["modalities"]["audio"]["encoder_name"] == saved["borrowed"][PLACE]["name"] == str(folders[family])
    loaded = MultimodalModel.from_pretrained(tmp_path / "run" / "adapter", device="cpu")
    assert transcripts(loaded, settings.data) == transcripts(model, settings.data)
    sample = [m.sample(ask("Repeat:", sound(0.7)), "One.") for m in (model, loaded)]
    batches = [m.collate([s]) for m, s in zip((model, loaded), sample, strict=True)]
    assert torch.equal(logits(model.eval(), batches[0]), logits(loaded, batches[1]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trained_encoder_is_in_the_folder_and_says_the_same_again(
    family: str, folders: dict[str, Path], recordings: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    settings = config(folders[family], recordings, decoder_folder, tmp_path / "run", train={"learning_rates": TRAINED})
    model = silent(settings)
    before = HubSpeechEncoder.from_pretrained(str(folders[family])).model.state_dict()
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter.safetensors")
    moved = {name for name, t in before.items() if not torch.equal(t, tensors[f"{PLACE}.{name}"])}
    assert len(moved) > 20 and not any("embed_positions" in name or "running" in name for name in moved)
    loaded = MultimodalModel.from_pretrained(tmp_path / "run" / "adapter", device="cpu")
    assert transcripts(loaded, settings.data) == transcripts(model, settings.data)
    known = speech_of(model).state_dict()
    assert all(torch.equal(tensor, known[name]) for name, tensor in speech_of(loaded).state_dict().items())


def test_a_frozen_encoder_drops_nothing_out_and_a_trained_one_does(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["wav2vec2-bert"], tmp_path / "dropping"))
    changed = json.loads((folder / "config.json").read_text()) | {"hidden_dropout": 0.5}
    (folder / "config.json").write_text(json.dumps(changed))
    encoder = HubSpeechEncoder.from_pretrained(str(folder))
    features = encoder.features(sound(0.5))
    inputs = (features[None], torch.tensor([len(features)]))
    assert not torch.equal(encoder.train()(*inputs), encoder.train()(*inputs))
    encoder.requires_grad_(False)
    assert torch.equal(encoder.train()(*inputs), encoder.eval()(*inputs))


def test_stopped_and_resumed_is_the_same_to_the_bit(
    folders: dict[str, Path], recordings: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    flat = {"schedule": "constant", "warmup": 0, "learning_rates": TRAINED}
    whole = config(folders["whisper"], recordings, decoder_folder, tmp_path / "whole", train=flat | {"steps": 4})
    whole = replace(whole, data=replace(whole.data, test_split=""))
    part = replace(whole, run_dir=tmp_path / "part", train=replace(whole.train, steps=2))
    expected = silent(whole).state_dict()
    silent(part)
    found = silent(replace(part, train=whole.train, resume=True)).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_training_stays_within_the_window(folders: dict[str, Path], tmp_path: Path) -> None:
    model, slow = with_speech(folders["whisper"]), Augment(speeds=(0.5,), noise_chance=0)
    for name, seconds in {"fits": 0.9, "long": 1.1}.items():
        save(tmp_path / f"{name}.wav", tone(1, seconds=seconds))
    (tmp_path / "train.tsv").write_text("audio\ttext\nfits.wav\tone\nlong.wav\ttwo\n")
    samples = SpeechSamples(model, SpeechDataConfig(source=str(tmp_path)).read("train"), augment=slow, silence=0.0)
    found = [samples.sample(i, random.Random(0)) for i in range(2)]
    assert found[0] is not None and len(found[0].media["audio"][0]) == 14_400 and found[1] is None
    quiet = SpeechSamples(model, samples.utterances, silence=0.999)
    drawn = [quiet.sample(0, random.Random(seed)) for seed in range(20)]
    lengths = [len(sample.media["audio"][0]) for sample in drawn if sample is not None]
    assert max(lengths) == 16_000 and min(lengths) < 16_000


# ---- CTC and settings that do not go together -----------------------------------------------------------------------


def test_ctc_moves_an_encoder_that_then_stands_still(
    folders: dict[str, Path], recordings: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    started = StageConfig(steps=2, learning_rates={"encoder": 1e-3})
    settings = config(folders["wav2vec2-bert"], recordings, decoder_folder, tmp_path / "run", ctc=started)
    model = silent(settings)
    assert speech_of(model).encoder.borrowed is None  # type: ignore[union-attr]
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter.safetensors")
    assert any(name.startswith(PLACE) for name in tensors), "it was trained, if not in the last stage"
    loaded = MultimodalModel.from_pretrained(tmp_path / "run" / "adapter", device="cpu")
    assert transcripts(loaded, settings.data) == transcripts(model, settings.data)


def test_settings_that_contradict_each_other_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    given = (folders["whisper"], tmp_path, tmp_path, tmp_path / "run")
    with pytest.raises(UserError, match=r"--ctc\.steps 3: the encoder's rate is 0.*expected --ctc\.steps 0, or"):
        config(*given, ctc=StageConfig(steps=3))
    rates = config(*given, ctc=StageConfig(steps=3), train={"learning_rates": TRAINED}).ctc_settings().learning_rates
    assert rates["encoder"] == 1e-3, "a trained encoder goes on at the rate of the main stage"
    with pytest.raises(UserError, match=r"--encoder-weights .*brings its own; expected one of the two"):
        config(*given, encoder_weights=tmp_path)


def test_an_unknown_encoder_is_one_line(decoder_folder: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    missing = config(tmp_path / "none", tmp_path, decoder_folder, tmp_path / "run")
    with pytest.raises(UserError, match=r"speech encoder .*none: cannot be loaded") as error:
        build_model(missing, [])
    assert "\n" not in str(error.value)
    half = Path(shutil.copytree(folders["whisper"], tmp_path / "half"))
    (half / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"half: no feature extractor can be loaded") as error:
        build_model(replace(missing, encoder_name=str(half)), [])
    assert "\n" not in str(error.value)


def test_taps_train_and_come_back_with_the_adapter(
    folders: dict[str, Path], recordings: Path, decoder_folder: Path, tmp_path: Path
) -> None:
    settings = config(folders["whisper"], recordings, decoder_folder, tmp_path / "run", encoder_taps=(1,))
    model = silent(settings)
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter.safetensors")
    assert "modalities.audio.encoder.tap_norms.0.weight" in tensors and not any(n.startswith(PLACE) for n in tensors)
    loaded = MultimodalModel.from_pretrained(tmp_path / "run" / "adapter", device="cpu")
    assert speech_of(loaded).encoder.feature_dim == 2 * 16
    assert transcripts(loaded, settings.data) == transcripts(model, settings.data)
    with pytest.raises(UserError, match=r"--encoder-taps \(1,\): a conformer has none; expected --encoder-name"):
        replace(settings, encoder_name="")


def test_a_configuration_survives_json_and_older_ones_mean_the_conformer(folders: dict[str, Path]) -> None:
    named = SpeechConfig(encoder_name=str(folders["whisper"]), encoder_taps=(1, 2), adapter=ADAPTER)
    assert SpeechConfig.from_dict(json.loads(json.dumps(named.to_dict()))) == named
    older = SpeechConfig(adapter=ADAPTER).to_dict()
    del older["encoder_name"], older["encoder_taps"]
    assert SpeechConfig.from_dict(older) == SpeechConfig(adapter=ADAPTER)
