"""The image model that a training begins with: a decoder with a new image adapter, or one that was trained before."""

from pathlib import Path

import torch

from multimodal.model import MultimodalModel
from multimodal.pretrained import load_for_training
from multimodal.quantization import Quantization, expect_quantization
from multimodal.train.config import TrainConfig
from multimodal.train.precision import resolve_device
from vision.image_modality import ImageConfig


def image_model(
    adapter: Path | None, train: TrainConfig, *, decoder: str, quantize: Quantization, new: ImageConfig
) -> MultimodalModel:
    """A model on the device of the run; torch's generator is seeded once the decoder is loaded.

    Args:
        adapter: to go on from, with the decoder that it names and all that is in it; None: a new one.
        decoder, quantize: of a new adapter. With an old one, quantize may only repeat what its decoder is.
        new: settings of a new adapter.

    Raises:
        UserError: decoder or adapter cannot be loaded, or the adapter is for a decoder that was quantised otherwise.
    """
    if adapter is None:
        frozen, tokenizer = load_for_training(decoder, train, quantization=quantize)
        torch.manual_seed(train.seed)
        model = MultimodalModel(frozen, tokenizer, decoder_name=decoder)
        model.add("image", new)
        return model
    model = MultimodalModel.from_pretrained(adapter, device=str(resolve_device(train.device)))
    expect_quantization(model.decoder.lm, quantize, adapter=adapter)
    torch.manual_seed(train.seed)
    return model
