"""An image encoder as a folder: its weights in safetensors, its sizes in JSON."""

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from multimodal.errors import UserError
from multimodal.files import new_file, write_whole
from multimodal.pretrained import encoder_folder
from vision.encoder import ImageEncoder, ImageEncoderConfig

ENCODER_FILE, ENCODER_CONFIG = "encoder.safetensors", "encoder_config.json"


def save_encoder(encoder: ImageEncoder, folder: Path) -> None:
    """Write the encoder's weights and sizes, for `--encoder.weights`. A start needs no more digits than bf16 has."""
    tensors = {name: t.detach().cpu().to(torch.bfloat16).contiguous() for name, t in encoder.state_dict().items()}
    with new_file(folder / ENCODER_FILE) as draft:
        save_file(tensors, draft)
    sizes = {field.name: getattr(encoder.config, field.name) for field in fields(ImageEncoderConfig)}
    write_whole(folder / ENCODER_CONFIG, json.dumps(sizes, indent=2) + "\n")


def read_encoder(folder: Path) -> ImageEncoder:
    """The encoder that `pretrain_image_encoder` saved, in eval mode; "builtin" is the one that comes with Graft.

    Raises:
        UserError: no such folder, or it holds something else.
    """
    file = encoder_folder(folder, "image_encoder") / ENCODER_CONFIG
    try:
        values = json.loads(file.read_text())
        sizes = {field.name: values[field.name] for field in fields(ImageEncoderConfig) if field.name in values}
        encoder = ImageEncoder(ImageEncoderConfig(**sizes))
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: {reason}; expected a folder written by pretrain_image_encoder") from None
    load_encoder(encoder, folder)
    return encoder.eval()


def load_encoder(encoder: ImageEncoder, folder: Path) -> None:
    """Load the weights that `pretrain_image_encoder` saved.

    Raises:
        UserError: no such file, or weights of other sizes.
    """
    file = encoder_folder(folder, "image_encoder") / ENCODER_FILE
    if not file.is_file():
        raise UserError(f"{file}: not found; expected a folder written by pretrain_image_encoder")
    try:
        encoder.load_state_dict(load_file(file))
    except SafetensorError as error:
        raise UserError(f"{file}: cannot be read ({error}); expected the encoder's tensors") from None
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit the encoder's sizes: {str(error).splitlines()[1].strip()}") from None
