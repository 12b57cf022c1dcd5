"""A speech encoder as a folder: its weights and the statistics of its features in safetensors, its sizes in JSON."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from multimodal.errors import UserError
from multimodal.files import new_file, write_whole
from multimodal.pretrained import encoder_folder
from speech.conformer import Conformer, ConformerConfig
from speech.features import LogMel

ENCODER_FILE, ENCODER_CONFIG = "encoder.safetensors", "encoder_config.json"


def _both(log_mel: LogMel, encoder: Conformer) -> nn.Module:
    return nn.ModuleDict({"log_mel": log_mel, "encoder": encoder})


def save_encoder(log_mel: LogMel, encoder: Conformer, folder: Path) -> None:
    """Write an encoder with its features. A start needs no more digits than bf16 has; statistics keep theirs."""
    both = _both(log_mel, encoder)
    tensors = dict(both.state_dict()) | {n: p.detach().to(torch.bfloat16) for n, p in both.named_parameters()}
    tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
    with new_file(folder / ENCODER_FILE) as draft:
        save_file(tensors, draft)
    write_whole(folder / ENCODER_CONFIG, json.dumps(asdict(encoder.config), indent=2) + "\n")


def read_encoder_config(folder: Path) -> ConformerConfig:
    """The sizes of a saved encoder; "builtin" is the one that comes with Graft.

    Raises:
        UserError: not such a folder, or of another version.
    """
    file = encoder_folder(folder, "speech_encoder") / ENCODER_CONFIG
    try:
        return ConformerConfig(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: {reason}; expected a folder written by pretrain_speech_encoder") from None


def load_encoder(log_mel: LogMel, encoder: Conformer, folder: Path) -> None:
    """Load what `save_encoder` wrote into an encoder of the same sizes and its features.

    Raises:
        UserError: no such file, or weights of other sizes.
    """
    file = encoder_folder(folder, "speech_encoder") / ENCODER_FILE
    try:
        _both(log_mel, encoder).load_state_dict(load_file(file))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: {reason}; expected a folder written by pretrain_speech_encoder") from None
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit the encoder's sizes: {str(error).splitlines()[1].strip()}") from None
