"""The proof that the text model stays itself holds for an adapter, and fails for another decoder."""

from pathlib import Path

import torch

from multimodal.model import MultimodalModel
from multimodal.text_proof import BareDecoder


def test_an_adapter_leaves_the_decoder_and_a_touched_weight_shows(adapter_folder: Path, decoder_folder: Path) -> None:
    bare = BareDecoder.load(str(decoder_folder))
    model = MultimodalModel.from_pretrained(adapter_folder, device="cpu")
    assert bare.proof(model).unchanged
    with torch.no_grad():
        next(model.decoder.lm.parameters()).add_(0.01)
    proof = bare.proof(model)
    assert not proof.unchanged and proof.text_logits_max_abs_diff > 0
