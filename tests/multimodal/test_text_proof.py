"""The proof that the text model stays itself holds for an adapter, and fails for another decoder."""

from pathlib import Path

import pytest
import torch

from multimodal.model import MultimodalModel
from multimodal.pretrained import load_decoder
from multimodal.text_proof import decoder_proof
from tests.tiny_models import CONFIG


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # bf16: as a decoder is kept on a GPU
def test_an_adapter_leaves_the_decoder_and_a_touched_weight_shows(decoder_folder: Path, dtype: torch.dtype) -> None:
    decoder, tokenizer = load_decoder(str(decoder_folder), dtype=dtype, device=torch.device("cpu"))
    model = MultimodalModel(decoder, tokenizer, decoder_name=str(decoder_folder))
    model.add("image", CONFIG)
    assert decoder_proof(model).unchanged
    with torch.no_grad():
        next(model.decoder.lm.parameters()).add_(0.01)
    proof = decoder_proof(model)
    assert not proof.unchanged and proof.text_logits_max_abs_diff > 0
