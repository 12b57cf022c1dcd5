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


def load_encoder(log_mel: LogMel, encoder: Conformer, folder: Path, *, fresh_layers: int = 0) -> None:
    """Load what `save_encoder` wrote into an encoder of the same sizes and its features.

    Args:
        fresh_layers: so many of the last layers stay as they are. Those next to the heads of BEST-RQ guess codes; what
            is said is found below them (in wav2vec 2.0: Pasad et al. 2021, arXiv 2107.04734).

    Raises:
        UserError: no such file, weights of other sizes, or fewer layers.
    """
    if not 0 <= fresh_layers <= len(encoder.layers):
        raise UserError(f"{fresh_layers} fresh layers of an encoder that has {len(encoder.layers)}; expected no more")
    file = encoder_folder(folder, "speech_encoder") / ENCODER_FILE
    try:
        both = _both(log_mel, encoder)
        last = range(len(encoder.layers) - fresh_layers, len(encoder.layers))
        fresh = tuple(f"encoder.layers.{number}." for number in last)
        own = {name: t for name, t in both.state_dict().items() if name.startswith(fresh)}
        both.load_state_dict(load_file(file) | own)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{file}: {reason}; expected a folder written by pretrain_speech_encoder") from None
    except RuntimeError as error:
        raise UserError(f"{file}: does not fit the encoder's sizes: {str(error).splitlines()[1].strip()}") from None
