"""Speech in the whole model, on tiny random weights: alone or in a batch, beside pictures, and not at all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from multimodal.batch import Batch
from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from multimodal.pretrained import BUILTIN, load_decoder
from multimodal.tokenizer import PAUSE
from speech.conformer import ConformerConfig
from speech.speech_adapter import SpeechAdapterConfig
from speech.speech_modality import MARKS, SpeechConfig
from tests.tiny_models import picture, tiny_model

CONFIG = SpeechConfig(
    encoder=ConformerConfig(mels=20, width=16, layers=2, heads=2, ffn=32, dropout=0.0),
    adapter=SpeechAdapterConfig(width=16, heads=2, ffn=32),
)
REPEAT = "Repeat after me in English:"


def sound(seconds: float, *, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(round(16_000 * seconds), generator=torch.Generator().manual_seed(seed))


def ask(*parts: str | Tensor | Any) -> list[dict[str, Any]]:
    """A user message; texts as they are, tensors as recordings, all else as pictures."""

    def as_part(part: Any) -> dict[str, Any]:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        kind = "audio" if isinstance(part, Tensor) else "image"
        return {"type": kind, kind: part}

    return [{"role": "user", "content": [as_part(part) for part in parts]}]


CHATS = {
    "short": ask(REPEAT, sound(0.31, seed=1)),
    "long": ask(REPEAT, sound(1.27, seed=2)),
    "two recordings": ask("First", sound(0.5, seed=3), "then", sound(0.7, seed=4), REPEAT),
    "text only": ask("Repeat after me in English: one two three."),
    "beside a picture": ask(picture(seed=1), sound(0.4, seed=5), "Describe the image."),
}


@pytest.fixture(scope="module")
def model() -> MultimodalModel:
    """With a picture and a speech adapter; not to be changed."""
    return with_speech()


def with_speech() -> MultimodalModel:
    made = tiny_model()
    torch.manual_seed(7)
    made.add("audio", CONFIG)
    with torch.no_grad():
        made.decoder.extra_embedding.weight.normal_(std=0.05)
    return made.eval()


@torch.no_grad()
def logits(model: MultimodalModel, batch: Batch) -> Tensor:
    return model.decoder(
        batch.input_ids, batch.attention_mask, memory=model.memory(batch), inserted=model.inserted(batch)
    )


def test_from_waveform_to_logits_every_sample_is_in_a_batch_as_alone(model: MultimodalModel) -> None:
    samples = [model.sample(chat, "One two.") for chat in CHATS.values()]
    together = logits(model, model.collate(samples))
    for row, sample in enumerate(samples):
        alone = model.collate([sample])
        length = alone.input_ids.shape[1]
        torch.testing.assert_close(together[row, :length], logits(model, alone)[0], atol=1e-5, rtol=1e-5)
    batch = model.collate(samples)
    with torch.no_grad():
        silent = model.decoder(batch.input_ids, batch.attention_mask, memory=model.memory(batch))
    heard = (together - silent).abs().amax((1, 2))
    assert heard[[0, 1, 2, 4]].min() > 1e-3, "the recordings change nothing, so this test shows nothing"
    assert heard[3] == 0


def test_the_loss_of_a_batch_is_the_sum_over_its_samples(model: MultimodalModel) -> None:
    samples = [model.sample(chat, "One two three.") for chat in CHATS.values()] * 4
    with torch.no_grad():
        total, tokens = model.loss(model.collate(samples))
        alone = [model.loss(model.collate([sample])) for sample in samples]
    torch.testing.assert_close(total, torch.stack([loss for loss, _ in alone]).sum(), atol=1e-3, rtol=1e-5)
    assert tokens == sum(count for _, count in alone)


@pytest.mark.parametrize("seconds", [1 / 16_000, 0.08, 0.081, 1.0])
def test_a_recording_takes_a_token_for_80_ms_between_its_marks(model: MultimodalModel, seconds: float) -> None:
    batch = model.collate([model.sample(ask(REPEAT, sound(seconds)))])
    first = model.decoder.vocab_size
    ids = batch.input_ids[0].tolist()
    placeholder = model.vocabulary.placeholder_ids["audio"]
    begin, end = ids.index(first + MARKS[0]), ids.index(first + MARKS[1])
    assert set(ids[begin + 1 : end]) == {placeholder}
    with torch.no_grad():
        embeddings = model.inserted(batch)[placeholder]
    assert len(embeddings) == end - begin - 1 == max(1, -(-round(16_000 * seconds) // 1280))


def test_every_turn_about_a_recording_hears_it(model: MultimodalModel) -> None:
    from multimodal.batch import Sample

    chat = CHATS["long"]
    first, second = model.sample(chat, "One."), model.sample(ask("Again:", chat[0]["content"][1]["audio"]), "Two two.")
    both = Sample(first.media, (*first.turns, *second.turns))
    with torch.no_grad():
        expected = model.loss(model.collate([first]))[0] + model.loss(model.collate([second]))[0]
        torch.testing.assert_close(model.loss(model.collate([both]))[0], expected, atol=1e-4, rtol=1e-5)
    assert len(model.collate([both]).media["audio"].items) == 1


def test_text_and_pictures_are_the_same_to_the_bit_without_the_speech_adapter(model: MultimodalModel) -> None:
    bare = tiny_model()
    with torch.no_grad():
        bare.decoder.extra_embedding.weight.copy_(model.decoder.extra_embedding.weight)
    for chat in (CHATS["text only"], ask(picture(seed=1), "Describe the image.")):
        assert torch.equal(
            logits(model, model.collate([model.sample(chat)])), logits(bare, bare.collate([bare.sample(chat)]))
        )


def test_generation_in_a_batch_is_as_alone(model: MultimodalModel) -> None:
    samples = [model.sample(chat) for chat in CHATS.values()]
    together = model.generate(samples, max_new_tokens=6)
    assert together == [model.generate([sample], max_new_tokens=6)[0] for sample in samples]


def test_adapter_encoder_and_marks_learn_and_nothing_else() -> None:
    model = with_speech().train()
    model.loss(model.collate([model.sample(CHATS["long"], "One two.")]))[0].backward()
    for part in ("adapter", "encoder"):
        named = [(n, p) for n, p in model.parts()[part] if n.startswith("audio.")]
        assert named and all(p.grad is not None and p.grad.any() for _, p in named)
    grad = model.decoder.extra_embedding.weight.grad
    assert grad is not None and grad.any(1).nonzero()[:, 0].tolist() == list(MARKS)
    assert all(p.grad is None for p in model.decoder.lm.parameters())


def test_a_frozen_encoder_runs_without_gradient() -> None:
    model = with_speech().train()
    for _, parameter in model.parts()["encoder"]:
        parameter.requires_grad_(False)
    needed: list[bool] = []
    speech: Any = model.modalities["audio"]
    speech.adapter.register_forward_pre_hook(lambda _m, args: needed.append(args[0].requires_grad))
    model.loss(model.collate([model.sample(CHATS["short"], "One.")]))[0].backward()
    assert needed == [False]


def test_a_saved_adapter_hears_the_same(model: MultimodalModel, tmp_path: Path, decoder_folder: Path) -> None:
    decoder, tokenizer = load_decoder(str(decoder_folder), dtype=torch.float32, device=torch.device("cpu"))
    made = MultimodalModel(decoder, tokenizer, decoder_name=str(decoder_folder))
    made.add("audio", CONFIG)
    speech: Any = made.modalities["audio"]
    speech.log_mel.fit_statistics([sound(2.0)])
    made.save_pretrained(tmp_path / "adapter")
    loaded = MultimodalModel.from_pretrained(tmp_path / "adapter", device="cpu")
    made.eval()
    samples = [m.sample(CHATS["long"], "One.") for m in (made, loaded)]
    assert torch.equal(logits(made, made.collate(samples[:1])), logits(loaded, loaded.collate(samples[1:])))


def test_a_foreign_configuration_is_refused(model: MultimodalModel) -> None:
    with pytest.raises(UserError, match=r"speech configuration: .*expected that of this version"):
        SpeechConfig.from_dict({"encoder": {"depth": 3}, "adapter": {}})
    assert SpeechConfig.from_dict(CONFIG.to_dict()) == CONFIG


def test_the_silence_control_is_as_long_and_silent(model: MultimodalModel) -> None:
    speech: Any = model.modalities["audio"]
    item = speech.prepare(sound(0.5))
    assert speech.blank(item).shape == item.shape and not speech.blank(item).any()


def test_the_builtin_decoder_repeats_tokens_that_stand_in_the_place_of_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks that begin as the mean of all embeddings made it lose 1.9 nats a token here."""
    decoder, tokenizer = load_decoder(BUILTIN, dtype=torch.float32, device=torch.device("cpu"))
    model = MultimodalModel(decoder, tokenizer, decoder_name=BUILTIN)
    model.add("audio", CONFIG)
    text = "the old man walked to the river before dinner"
    ids = tokenizer.encode(text, add_special_tokens=False)
    heard = [token for one in ids for token in (one, tokenizer.convert_tokens_to_ids(PAUSE))]
    speech: Any = model.modalities["audio"]
    embeddings_ED = decoder.lm.get_input_embeddings()(torch.tensor(heard))
    monkeypatch.setattr(speech, "output_length", lambda samples: len(heard))
    monkeypatch.setattr(speech, "embeddings", lambda batch: embeddings_ED)
    question = ask(REPEAT, sound(1.0))
    total, tokens = model.eval().loss(model.collate([model.sample(question, text)]))
    assert total.item() / tokens < 0.1
    assert model.generate([model.sample(question)], max_new_tokens=24) == [text]


def test_marks_begin_as_the_decoders_pause_and_are_its_mean_again_once_unloaded() -> None:
    decoder, tokenizer = load_decoder(BUILTIN, dtype=torch.float32, device=torch.device("cpu"))
    builtin = MultimodalModel(decoder, tokenizer, decoder_name=BUILTIN)
    mean_D = decoder.extra_embedding.weight[MARKS[0]].clone()
    builtin.add("audio", CONFIG)
    pause_D = decoder.lm.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(PAUSE)]
    for mark in MARKS:
        torch.testing.assert_close(decoder.extra_embedding.weight[mark], pause_D, rtol=0, atol=0)
    builtin.unload_adapter("audio")
    torch.testing.assert_close(decoder.extra_embedding.weight[MARKS[0]], mean_D, rtol=0, atol=0)
