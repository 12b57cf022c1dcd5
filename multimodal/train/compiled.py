"""Compilation layer by layer: the layers of a stack are alike, so that each kind of layer is compiled once and not,
with the whole model, once for each layer.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn

from multimodal.errors import UserError

GRAPHS = 64
"""So many are made of a kind of layer, for other shapes, readers and modes, before torch runs it uncompiled."""


def compile_layers(model: nn.Module, device: torch.device, *, backend: str = "inductor") -> None:
    """Compile, in place, every layer of every stack (a list or dict of modules named `layers`) of a model.

    Layers that take the utterances of a batch end to end stay as they are: each list of lengths would be compiled for
    itself. Of a layer with hooks its children are compiled: hooks differ from layer to layer.

    Raises:
        UserError: the device is a CPU, and there is no C++ compiler.
    """
    if device.type == "cpu" and not any(
        shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")
    ):
        raise UserError("--compile: found no C++ compiler; expected g++ or clang++, or training without the flag")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    for layer in _layers(model):
        for module in layer.children() if layer._forward_pre_hooks else (layer,):
            module.compile(backend=backend)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        stack = module._modules.get("layers")
        if getattr(module, "end_to_end", False) or not isinstance(stack, nn.ModuleList | nn.ModuleDict):
            continue
        yield from stack.children()


def uncompiled() -> AbstractContextManager[None]:
    """Within, what is compiled runs as it was: generation has shapes of its own at every token."""
    return torch.compiler.set_stance("force_eager")
