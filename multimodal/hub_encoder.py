"""Encoders of `transformers` by name, and what an adapter folder may leave out because the name gives it.

Weights that nobody trained are not copied into every adapter: like the decoder's they are named, and known again by
their hash.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel

from multimodal.errors import reported_as
from multimodal.hashing import weights_sha256
from multimodal.safe_weights import SAFE, expect_safetensors


@dataclass(frozen=True)
class Origin:
    """Where weights come from: a hub name or folder, and the hash of what it gave."""

    name: str
    sha256: str


class HubEncoder(nn.Module):
    """An encoder around a `model` of `transformers`."""

    model: PreTrainedModel
    origin: Origin | None = None
    """None: no name gives all the weights of `model`."""

    @property
    def borrowed(self) -> Origin | None:
        """The origin, if the weights of `model` are those that it gave; None where they were trained."""
        unchanged = self.origin is not None and weights_sha256(self.model) == self.origin.sha256
        return self.origin if unchanged else None

    def train(self, mode: bool = True) -> Self:
        """As ever, but a frozen encoder stays in eval mode: it is used as it was published, without dropout."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        # The newer of the two names warns under the older one, and transformers 5.17 knows the older one alone.
        older = self.model.gradient_checkpointing_enable
        getattr(self.model, "activation_checkpointing_enable", older)({"use_reentrant": False})


def read_model(name: str, *, what: str) -> tuple[PreTrainedModel, bool]:
    """A model of a folder or the hub in fp32, and whether all of its weights were there (or some are new and random).

    Args:
        what: what it is to be, for the message.

    Raises:
        UserError: no such model, or one that would run code.
    """
    expect_safetensors(Path(name), what=what, reader="AutoModel")
    with reported_as(f"{what} {name}: cannot be loaded", expected="expected a model of transformers"):
        model, found = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **SAFE)
    return model, not found["missing_keys"]


def origin_of(model: nn.Module, name: str) -> Origin:
    """That of a model as it was loaded."""
    return Origin(name, weights_sha256(model))
