"""A tiny frozen decoder with a tiny image adapter, and pictures for it, for every test that needs the whole model.

    from tests.tiny_models import CONFIG, picture, save_decoder, tiny_model

Tiles are 16 pixels, so a picture of 16 x 16 has one tile, 32 x 16 two and 32 x 32 four. The adapter sits before layers
1 and 3 of four.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from multimodal.decoder import FrozenDecoder
from multimodal.messages import Message
from multimodal.model import MultimodalModel
from multimodal.tokenizer import AnyTokenizer
from multimodal.train.config import TrainConfig
from tests.multimodal.tiny_decoders import tiny_decoder
from tests.multimodal.tiny_tokenizers import builtin_tokenizer
from vision.clip_writing import write_mp4
from vision.image_modality import EncoderOptions, ImageConfig
from vision.temporal_aggregator import TemporalAggregatorConfig
from vision.video_adapter import VideoAdapterConfig
from vision.video_modality import VideoConfig

TILE = 16
ENCODER: dict[str, Any] = {
    "tile_size": TILE,
    "patch_size": 8,
    "width": 16,
    "layers": 2,
    "global_layers": 1,
    "heads": 2,
}
CONFIG = ImageConfig(encoder=EncoderOptions(**ENCODER))
VIDEO = VideoConfig(
    adapter=VideoAdapterConfig(
        every=2, aggregator=TemporalAggregatorConfig(group=4, latents=3, width=16, layers=1, heads=2)
    ),
    frames=6,
)
LOW_MEMORY: dict[str, Any] = {
    "optimizer": "adamw8bit",
    "master_weights": "bf16",
    "precision": "bf16",
    "offload_activations": True,
}
"""Everything of the training settings that saves memory."""
RATES = {"adapter": 1e-3, "gates": 1e-2, "encoder": 1e-3, "late": 1e-3, "tokens": 1e-3}


def decoder_for(tokenizer: AnyTokenizer, *, family: str = "llama", seed: int = 0) -> Any:
    """A random decoder that reads and writes the tokenizer's ids."""
    return tiny_decoder(
        family,
        seed=seed,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def save_decoder(folder: Path, *, seed: int = 0) -> Path:
    """A decoder folder as `transformers` writes it."""
    tokenizer = builtin_tokenizer()
    decoder_for(tokenizer, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def open_gates(module: nn.Module, gate: float = 0.8) -> None:
    """Open every gate and make the weights large enough that what they do shows in the logits."""
    torch.manual_seed(11)
    for name, parameter in module.named_parameters():
        if parameter.numel() == 1:
            parameter.fill_(gate)
        elif "adapter" in name and parameter.ndim == 2:
            parameter.normal_(std=0.3)


def tiny_model(config: ImageConfig = CONFIG, *, opened: bool = True, name: str = "tiny") -> MultimodalModel:
    """A model with an image adapter, in eval mode; always the same. `name` is the decoder folder that it is said to be
    of.
    """
    tokenizer = builtin_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = MultimodalModel(FrozenDecoder(decoder_for(tokenizer)), tokenizer, decoder_name=name)
        model.add("image", config)
        if opened:
            open_gates(model.modalities)
    return model.eval()


def tiny_video_model(config: VideoConfig = VIDEO, *, opened: bool = True, name: str = "tiny") -> MultimodalModel:
    """`tiny_model` with video parts, in eval mode; always the same. `opened`: of the video parts too."""
    model = tiny_model(opened=opened, name=name)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model.add("video", config)
        if opened:
            open_gates(model.modalities["video"])
    return model.eval()


def clip_file(path: Path, *, frames: int = 6, seed: int = 0, size: tuple[int, int] = (TILE, TILE)) -> Path:
    """An MP4 video of noise."""
    write_mp4([picture(*size, seed=100 * seed + i) for i in range(frames)], path, fps=8)
    return path


def picture(width: int = TILE, height: int = TILE, *, seed: int = 0) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ask(*parts: Any) -> list[Message]:
    """One user message of texts, pictures, and clips (lists of pictures, or .mp4 files)."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else _medium(p) for p in parts]
    return [{"role": "user", "content": content}]


def _medium(source: Any) -> dict[str, Any]:
    kind = "video" if isinstance(source, list) or Path(str(source)).suffix == ".mp4" else "image"
    return {"type": kind, kind: source}


def train_config(**settings: Any) -> TrainConfig:
    """Two quick steps on the CPU."""
    defaults = {"steps": 2, "batch_size": 2, "learning_rates": RATES, "device": "cpu", "tensorboard": False}
    return TrainConfig(**(defaults | settings))
