"""Evidence that the text model stays itself: its text-only logits and its weights' hash, before and after."""

import torch
from torch import Tensor

from multimodal.decoder import FrozenDecoder
from multimodal.model import MultimodalModel
from multimodal.pretrained import load_decoder
from multimodal.quantization import quantization_of
from multimodal.report import DecoderProof
from multimodal.tokenizer import AnyTokenizer

PROBE = "<|begin_of_text|><|user|>Repeat after me in English: the red kite is above the old house.<|assistant|>"


def text_logits(decoder: FrozenDecoder, tokenizer: AnyTokenizer) -> Tensor:
    """Logits of a piece of text, without media."""
    ids = tokenizer(PROBE, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return decoder(ids.to(decoder.lm.device))  # type: ignore[operator]


def decoder_proof(model: MultimodalModel) -> DecoderProof:
    """The decoder in a model beside the same one as it was before: loaded anew, in its precision and on its device, and
    nothing of it kept."""
    before, tokenizer = load_decoder(
        model.decoder_name,
        dtype=model.decoder.lm.dtype,
        device=model.device,
        quantization=quantization_of(model.decoder.lm),
    )
    logits, now = text_logits(before, tokenizer), text_logits(model.decoder, model.tokenizer)
    moved = (now.float() - logits.float()).abs().max().item()
    return DecoderProof(before.sha256(), model.decoder.sha256(), moved)
