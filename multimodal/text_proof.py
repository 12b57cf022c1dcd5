"""Evidence that the text model stays itself: its text-only logits and its weights' hash, before and after."""

from dataclasses import dataclass

import torch
from torch import Tensor

from multimodal.decoder import FrozenDecoder
from multimodal.model import MultimodalModel
from multimodal.pretrained import load_decoder
from multimodal.quantization import Quantization
from multimodal.report import DecoderProof
from multimodal.tokenizer import AnyTokenizer

PROBE = "<|begin_of_text|><|user|>Repeat after me in English: the red kite is above the old house.<|assistant|>"


def text_logits(decoder: FrozenDecoder, tokenizer: AnyTokenizer) -> Tensor:
    """Logits of a piece of text, without media."""
    ids = tokenizer(PROBE, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return decoder(ids.to(decoder.lm.device))  # type: ignore[operator]


@dataclass(frozen=True)
class BareDecoder:
    """What a decoder says and is without any adapter."""

    logits: Tensor
    sha256: str

    @classmethod
    def load(cls, name: str, *, quantization: Quantization = "none") -> "BareDecoder":
        """Of a decoder's name, in fp32 on the CPU and then quantised; nothing else is kept of it."""
        decoder, tokenizer = load_decoder(
            name, dtype=torch.float32, device=torch.device("cpu"), quantization=quantization
        )
        return cls(text_logits(decoder, tokenizer), decoder.sha256())

    def proof(self, model: MultimodalModel) -> DecoderProof:
        """The comparison with the decoder in a model."""
        moved = (text_logits(model.decoder, model.tokenizer).float().cpu() - self.logits).abs().max().item()
        return DecoderProof(self.sha256, model.decoder.sha256(), moved)
