"""A decoder on the meta device costs what it would without the short cut for like layers."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import T5Config

from multimodal import meta_decoder
from multimodal.decoder_shape import DecoderShape
from multimodal.errors import UserError
from multimodal.meta_decoder import decoder_pieces, embeddings, read_config, run_decoder
from multimodal.meta_run import RunCost
from tests.multimodal.test_pretrained import bring_code

SHAPE = DecoderShape(layers=6, width=64, heads=4, kv_heads=2, ffn=128, vocabulary=300)


def cost(*, checkpointing: bool, grad: bool = True) -> RunCost:
    decoder = meta_decoder.meta_decoder(SHAPE.config())
    if checkpointing:
        decoder.enable_gradient_checkpointing()
    with decoder_pieces(decoder, torch.bfloat16, grad=grad) as pieces:
        run_decoder(pieces, decoder, embeddings(decoder, 2, 32).requires_grad_(grad), losses=8 if grad else 0)
        return pieces.finish()


@pytest.mark.parametrize(("checkpointing", "grad"), [(False, True), (True, True), (False, False)])
def test_one_layer_stands_for_those_like_it(checkpointing: bool, grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    short = cost(checkpointing=checkpointing, grad=grad)

    @contextmanager
    def never(*_: object):
        yield

    monkeypatch.setattr(meta_decoder, "layers_once", never)
    whole = cost(checkpointing=checkpointing, grad=grad)
    assert short.pieces == whole.pieces
    # What layers share besides their input (angles of positions) is missing, which shows at this size alone.
    assert short.kept == pytest.approx(whole.kept, rel=0.05) and short.peak == pytest.approx(whole.peak, rel=0.1)


def test_layers_are_themselves_again_afterwards() -> None:
    decoder = meta_decoder.meta_decoder(SHAPE.config())
    with decoder_pieces(decoder, None, grad=False):
        pass
    assert all("forward" not in vars(layer) for layer in decoder.seam.layers)


def test_sizes_of_the_built_in_decoder_are_read_without_its_weights() -> None:
    assert read_config("builtin").num_hidden_layers == 6


@pytest.mark.parametrize("answer", ["y", "n"])
def test_code_beside_a_configuration_is_not_run_and_nobody_is_asked(
    decoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt: (asked.append(prompt), answer)[1])
    folder = Path(shutil.copytree(decoder_folder, tmp_path / "decoder"))
    bring_code(folder)
    with pytest.raises(UserError, match="no configuration can be read"):
        read_config(str(folder))
    assert not asked and not (folder / "was run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no config.json in that folder"), ("{", "no configuration can be read"), ("[]", "no configuration can")],
)
def test_a_damaged_configuration_is_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=f"decoder {tmp_path}: {said}") as error:
        read_config(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_model_that_is_no_causal_decoder_is_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot be built from a configuration of t5 .*expected a causal decoder"):
        meta_decoder.meta_decoder(T5Config())
