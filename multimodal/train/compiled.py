"""Compilation layer by layer: the layers of a stack are alike, so that each kind of layer is compiled once and not,
with the whole model, once for each layer.
"""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import nn

from multimodal.errors import UserError

GRAPHS = 64
"""So many are made of a kind of layer, for other shapes, readers and modes, before torch runs it uncompiled."""


def compile_layers(model: nn.Module, device: torch.device, *, backend: str = "inductor") -> list[nn.Module]:
    """Compile, in place, every layer of every stack (a list or dict of modules named `layers` or `..._layers`) of a
    model; returns what is compiled.

    Layers that take the utterances of a batch end to end stay as they are: each list of lengths would be compiled for
    itself. Of a layer with hooks its children are compiled: hooks differ from layer to layer.

    Raises:
        UserError: the device is a CPU, and there is no C++ compiler, or no headers of Python.
    """
    if device.type == "cpu":
        _expect_compiler()
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    compiled = [
        module for layer in _layers(model) for module in (layer.children() if layer._forward_pre_hooks else (layer,))
    ]
    for module in compiled:
        module.compile(backend=backend)
    return compiled


@contextmanager
def compiled_layers(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within, the layers are compiled; afterwards the model is what it was.

    Raises:
        UserError: as `compile_layers`.
    """
    compiled = compile_layers(model, device)
    try:
        yield
    finally:
        for module in compiled:
            module._compiled_call_impl = None


def uncompiled() -> AbstractContextManager[None]:
    """Within, what is compiled runs as it was: generation has shapes of its own at every token."""
    return torch.compiler.set_stance("force_eager")


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        for name, stack in module._modules.items():
            named = name == "layers" or name.endswith("_layers")
            if named and isinstance(stack, nn.ModuleList | nn.ModuleDict) and not getattr(module, "end_to_end", False):
                yield from stack.children()


def _expect_compiler() -> None:
    without = "or training without --train.compile"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise UserError(f"--train.compile: found no C++ compiler; expected g++ or clang++, {without}")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.is_file():
        raise UserError(f"--train.compile: {headers} is not there; expected the headers of Python, {without}")
