"""The adapter's embeddings become the decoder's tokens, with pauses between, which the decoder then repeats."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from multimodal.errors import UserError
from multimodal.model import MultimodalModel
from multimodal.pretrained import load_for_training
from multimodal.train.config import StageConfig
from speech.alignment import CLOSENESS, SCALE, AlignmentTask
from speech.asr_training import align, build_model
from speech.conformer import ConformerConfig
from speech.speech_adapter import SpeechAdapterConfig
from speech.speech_data import evaluation_sets, training_utterances
from speech.speech_modality import SpeechConfig
from tests.speech.made_speech import save_digits, tone
from tests.speech.test_asr_training import config
from tests.tiny_models import train_config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_digits(tmp_path_factory.mktemp("fsdd"))


def model_of(decoder: str) -> MultimodalModel:
    torch.manual_seed(0)
    lm, tokenizer = load_for_training(decoder, train_config())
    model = MultimodalModel(lm, tokenizer, decoder_name=decoder)
    encoder = ConformerConfig(mels=20, width=32, layers=1, heads=2, ffn=64, dropout=0.0)
    model.add("audio", SpeechConfig(encoder=encoder, adapter=SpeechAdapterConfig(width=32, heads=2, ffn=64)))
    return model


def samples() -> list[tuple[torch.Tensor, str]]:
    return [(tone(4, seconds=1.6), "Seven blue books."), (tone(1, seconds=0.9), "two")]


def test_the_loss_is_ctc_over_cosines_with_the_pause_as_blank_and_closeness() -> None:
    model = model_of("builtin")
    task = AlignmentTask(model).eval()
    batch = task.collate(samples())
    total, tokens = task.loss(batch)
    ids = [task.tokenizer.encode(text, add_special_tokens=False) for text in ("seven blue books", "two")]
    assert tokens == sum(map(len, ids))
    embeddings_BED, lengths_B = task.speech.encode(batch.sound)
    table_VD = model.decoder.lm.get_input_embeddings().weight.float()
    cosines_BEV = torch.cosine_similarity(embeddings_BED[:, :, None], table_VD, dim=-1)
    logs = (SCALE * cosines_BEV).log_softmax(-1)
    expected = torch.zeros(())
    for i, target in enumerate(ids):
        frames, characters = lengths_B[i : i + 1], torch.tensor([len(target)])
        expected = expected + F.ctc_loss(
            logs[i, : lengths_B[i], None], torch.tensor([target]), frames, characters, blank=task.pause, reduction="sum"
        )
        taken_for_EV = logs[i, : lengths_B[i]].exp()
        meant_ED = taken_for_EV @ table_VD
        apart = taken_for_EV.amax(-1) * (
            1 - torch.cosine_similarity(embeddings_BED[i, : lengths_B[i]], meant_ED, dim=-1)
        )
        expected = expected + CLOSENESS * apart.sum()
    torch.testing.assert_close(total, expected, atol=1e-2, rtol=1e-4)


def test_the_decoder_gets_no_gradient_and_the_rest_does() -> None:
    model = model_of("builtin")
    task = AlignmentTask(model)
    task.loss(task.collate(samples()))[0].backward()
    for part, named in task.parts().items():
        assert named and all(p.grad is not None for _, p in named), part
    assert all(p.grad is None for p in model.decoder.lm.parameters())


def test_tokens_are_handed_over_after_alignment_also_after_a_resume(folder: Path, tmp_path: Path) -> None:
    settings: Any = config(folder, Path("builtin"), tmp_path)
    settings = replace(settings, align=StageConfig(steps=200))
    learnt, heard = training_utterances(settings.data, seed=0), evaluation_sets(settings.data, seed=0)[""]
    model = build_model(settings, learnt)
    result = align(settings, model, learnt, heard)
    assert result.metrics["ctc_wer"] <= 0.2, result.metrics
    again = build_model(settings, learnt)
    align(replace(settings, resume=True), again, learnt, heard)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_a_decoder_without_a_pause_is_one_line(decoder_folder: Path) -> None:
    model = model_of(str(decoder_folder))
    model.tokenizer.get_vocab = lambda: {"<|pad|>": 0}
    with pytest.raises(UserError, match=r"has no token <\|pause\|>; expected --align.steps 0"):
        AlignmentTask(model)
