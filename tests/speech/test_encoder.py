"""Encoders of `transformers`: parity with the models fed by their own extractors, alone as in a batch. Tiny random
models, offline.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    ParakeetCTCConfig,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    SequenceFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from multimodal.errors import UserError
from speech.conformer import Conformer, ConformerConfig
from speech.encoder import HubSpeechEncoder, SpeechEncoder
from speech.frames import pad_batch
from tests.spoilt_weights import FAULTS, spoil

SHAPE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
QUIET: dict[str, Any] = {"layerdrop": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
SAMPLES = (16_000, 7_313, 2_000, 12_345)


def whisper(**changes: Any) -> PreTrainedModel:
    layers: dict[str, Any] = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    decoder: dict[str, Any] = {
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 32,
        "vocab_size": 60,
    }
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return WhisperModel(
        WhisperConfig(d_model=16, max_source_positions=50, dropout=0.0, **layers, **decoder, **ids, **changes)
    )


def wav2vec2_bert(**changes: Any) -> PreTrainedModel:
    dropouts = ("hidden_dropout", "feat_proj_dropout", "conformer_conv_dropout")
    settings: dict[str, Any] = {**SHAPE, **QUIET, **dict.fromkeys(dropouts, 0.0), **changes}
    return Wav2Vec2BertModel(Wav2Vec2BertConfig(**settings))


def parakeet_config() -> ParakeetEncoderConfig:
    return ParakeetEncoderConfig(**SHAPE, **QUIET, dropout=0.0, subsampling_conv_channels=8)


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "whisper": whisper,
    "wav2vec2-bert": wav2vec2_bert,
    "wav2vec2-bert with its adapter": lambda: wav2vec2_bert(add_adapter=True),
    "parakeet": lambda: ParakeetEncoder(parakeet_config()),
    "parakeet ctc": lambda: ParakeetForCTC(
        ParakeetCTCConfig(vocab_size=20, pad_token_id=19, encoder_config=parakeet_config())
    ),
}
STRIDES = {"whisper": 2, "wav2vec2-bert": 1, "parakeet": 8}


def extractor(name: str) -> SequenceFeatureExtractor:
    if name == "whisper":
        return WhisperFeatureExtractor(chunk_length=1)
    return SeamlessM4TFeatureExtractor() if "bert" in name else ParakeetFeatureExtractor()


def build(name: str, *, taps: tuple[int, ...] = ()) -> HubSpeechEncoder:
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too
            parameter.add_(0.1 * torch.randn_like(parameter))
    return HubSpeechEncoder(model, extractor(name), taps=taps).eval()


def waveforms() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [0.1 * torch.randn(samples, generator=generator) for samples in SAMPLES]


@pytest.mark.parametrize("name", MODELS)
def test_parity_with_the_model_fed_by_its_own_extractor(name: str) -> None:
    encoder = build(name)
    for waveform in waveforms():
        inputs = extractor(name)(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")  # type: ignore[operator]
        theirs = encoder.model(**inputs).last_hidden_state
        features = encoder.features(waveform)
        ours = encoder(features[None], torch.tensor([len(features)]))
        assert ours.shape == (1, encoder.output_length(len(features)), encoder.feature_dim)
        torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], atol=1e-5, rtol=1e-5)
        seconds_left_out = (theirs.shape[1] - ours.shape[1]) * 0.01 * STRIDES[name.split()[0]]
        assert name == "whisper" or seconds_left_out < 0.09  # an incomplete last frame at most
    if name.startswith("parakeet"):
        model: Any = encoder.model
        counted = model._get_subsampling_output_length(torch.arange(1, 99))
        assert counted.tolist() == encoder.output_length(torch.arange(1, 99)).tolist()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_ragged_batch_equals_each_utterance_alone(name: str, training: bool) -> None:
    encoder = build(name).train(training)
    items = [encoder.features(waveform) for waveform in waveforms()]
    batch = pad_batch(items)
    spoiled = torch.full((len(items), batch.padded.shape[1] + 8, batch.padded.shape[2]), torch.nan)
    for row, item in zip(spoiled, items, strict=True):
        row[: len(item)] = item
    together = encoder(spoiled if name != "whisper" else spoiled[:, :100], batch.lengths)
    lengths = encoder.output_length(batch.lengths)
    assert together.shape[:2] == (len(items), int(lengths.max()))
    for i, item in enumerate(items):
        alone = encoder(item[None], torch.tensor([len(item)]))
        torch.testing.assert_close(together[i : i + 1, : lengths[i]], alone, atol=1e-5, rtol=1e-5)
    weights = torch.randn(together.shape)
    valid = torch.arange(together.shape[1]) < lengths[:, None]
    (together * weights)[valid].sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    assert sum(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters()) > 20


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_taps_are_the_models_own_hidden_states(name: str) -> None:
    encoder = build(name, taps=(1,))
    assert encoder.feature_dim == 32 and build(name).feature_dim == 16
    for waveform in waveforms()[:2]:
        inputs = extractor(name)(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")  # type: ignore[operator]
        theirs = encoder.model(**inputs, output_hidden_states=True).hidden_states[1]
        x_BMF = encoder.features(waveform)[None]
        lengths = torch.tensor([x_BMF.shape[1]])
        final, (tap,) = encoder.forward_intermediates(x_BMF, lengths, (1,))
        torch.testing.assert_close(tap, theirs[:, : tap.shape[1]], atol=1e-5, rtol=1e-5)
        assert torch.equal(encoder(x_BMF, lengths), torch.cat([final, encoder.tap_norms[0](tap)], dim=-1))
        assert torch.equal(final, encoder.forward_intermediates(x_BMF, lengths)[0])


@pytest.mark.parametrize("name", ["whisper", "wav2vec2-bert", "parakeet"])
@torch.no_grad()
def test_taps_in_a_ragged_batch_are_those_alone(name: str) -> None:
    encoder = build(name, taps=(1, 2))
    items = [encoder.features(waveform) for waveform in waveforms()]
    batch = pad_batch(items)
    together = encoder(batch.padded, batch.lengths)
    for row, item, length in zip(together, items, encoder.output_length(batch.lengths).tolist(), strict=True):
        alone = encoder(item[None], torch.tensor([len(item)]))
        torch.testing.assert_close(row[None, :length], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "model"),
    [("whisper", lambda: whisper(encoder_layerdrop=1.0)), ("wav2vec2-bert", lambda: wav2vec2_bert(layerdrop=1.0))],
)
def test_where_layers_are_tapped_none_is_left_out_in_training(name: str, model: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    encoder = HubSpeechEncoder(model(), extractor(name), taps=(1, 2))
    x_BMF = encoder.features(waveforms()[0])[None]
    lengths = torch.tensor([x_BMF.shape[1]])
    torch.testing.assert_close(encoder.train()(x_BMF, lengths), encoder.eval()(x_BMF, lengths))


@pytest.mark.parametrize("name", ["whisper", "wav2vec2-bert", "parakeet"])
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = build(name).train()
        if checkpointing:
            encoder.enable_gradient_checkpointing()
        batch = pad_batch([encoder.features(waveform) for waveform in waveforms()[:2]])
        encoder(batch.padded, batch.lengths)[:, :3].square().mean().backward()
        gradients.append({n: p.grad for n, p in encoder.named_parameters() if p.grad is not None})
    assert sum("layers" in n for n in gradients[0]) > 20 and gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key])


def test_one_protocol_for_all() -> None:
    encoders: list[SpeechEncoder] = [Conformer(ConformerConfig(width=16, layers=1, ffn=16)), build("parakeet")]
    for encoder in encoders:
        batch = pad_batch([torch.randn(n, 80) for n in (50, 33)])
        lengths = encoder.output_length(batch.lengths)
        assert encoder(batch.padded, batch.lengths).shape == (2, int(lengths.max()), encoder.feature_dim)
        encoder.enable_gradient_checkpointing()


def test_whisper_hears_its_window_and_no_more() -> None:
    encoder = build("whisper")
    assert encoder.sample_rate == 16_000 and len(encoder.features(torch.zeros(16_000))) == 100
    with pytest.raises(UserError, match="the encoder hears at most 1 s at once"):
        encoder.features(torch.zeros(17_600))
    with pytest.raises(ValueError, match="101 input frames, the model hears 100"):
        encoder(torch.zeros(1, 101, 80), torch.tensor([101]))
    # An empty room is parity too: silence is all there is.
    hushed = encoder.features(torch.zeros(3_200))
    inputs = WhisperFeatureExtractor(chunk_length=1)(torch.zeros(3_200).numpy(), sampling_rate=16_000)  # type: ignore[operator]
    theirs = encoder.model(torch.as_tensor(inputs["input_features"])).last_hidden_state
    ours = encoder(hushed[None], torch.tensor([len(hushed)]))
    torch.testing.assert_close(ours, theirs[:, : ours.shape[1]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["whisper", "wav2vec2-bert", "parakeet ctc"])
def test_from_a_folder(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model.save_pretrained(tmp_path)
    extractor(name).save_pretrained(tmp_path)
    encoder = HubSpeechEncoder.from_pretrained(str(tmp_path)).eval()
    features = encoder.features(waveforms()[1])
    lengths = torch.tensor([len(features)])
    assert torch.equal(
        encoder(features[None], lengths), HubSpeechEncoder(model, extractor(name))(features[None], lengths)
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["whisper", "wav2vec2-bert", "parakeet", "parakeet ctc"])
def test_weights_that_do_not_fit_are_named(name: str, fault: str, tmp_path: Path) -> None:
    MODELS[name]().save_pretrained(tmp_path)
    extractor(name).save_pretrained(tmp_path)
    expected = spoil(tmp_path, fault, last=1, skip="decoder")
    with pytest.raises(UserError, match=f"weights do not fit its config.json: {expected}") as error:
        HubSpeechEncoder.from_pretrained(str(tmp_path))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_weights_that_no_feature_needs_may_be_missing(tmp_path: Path) -> None:
    """Of Whisper its decoder, of wav2vec2-BERT the embedding of masks."""
    for name, unneeded in (("whisper", "decoder."), ("wav2vec2-bert", "masked_spec_embed")):
        MODELS[name]().save_pretrained(tmp_path / name)
        extractor(name).save_pretrained(tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(unneeded)}
        assert len(kept) < len(tensors)
        save_file(kept, file, metadata={"format": "pt"})
        assert HubSpeechEncoder.from_pretrained(str(tmp_path / name)).origin is None


def test_bad_input_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"taps \(2, 1\), expected rising layer numbers from 1 to 2"):
        HubSpeechEncoder(whisper(), extractor("whisper"), taps=(2, 1))
    with pytest.raises(UserError, match="nowhere"):
        HubSpeechEncoder.from_pretrained(str(tmp_path / "nowhere"))
    bert = BertModel(BertConfig(**SHAPE, vocab_size=20))
    with pytest.raises(UserError, match="found 'bert', expected one of whisper"):
        HubSpeechEncoder(bert, extractor("whisper"))
    with pytest.raises(UserError, match="Wav2Vec2FeatureExtractor is not the extractor of wav2vec2-bert"):
        HubSpeechEncoder(wav2vec2_bert(), Wav2Vec2FeatureExtractor())
    with pytest.raises(UserError, match=r"speech of 0\.05 s, expected at least 0\.1 s"):
        build("parakeet").features(torch.zeros(800))
