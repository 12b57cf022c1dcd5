"""The seam: how media reaches a decoder that nobody modified.

A pre-hook on the decoder works out what the positions of this call may see and hands it on as one extra keyword,
`cross_memory`, which decoders pass to every layer. A pre-hook on each layer takes the keyword away again and, on
adapted layers, replaces the hidden states. Without memory neither touches anything.

The hooks are objects and not closures, so that a deep copy of the whole gets hooks that use the copy's adapters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from multimodal.errors import UserError
from multimodal.memory import CrossMemory, Visibility

KEYWORD = "cross_memory"
HookResult = tuple[tuple[Any, ...], dict[str, Any]] | None


@dataclass(frozen=True)
class _Call:
    """What one decoder call hands to its layers."""

    memory: CrossMemory
    visible: dict[str, Visibility]


@dataclass(frozen=True)
class Probe:
    """Given to the decoder in place of memory: collects the layers that the keyword reaches."""

    reached: set[int] = field(default_factory=set)


class Seam:
    """The hooks on one decoder, the adapters they serve in order of use, and the memory of a running `generate`.

    Args:
        decoder: what `lm.get_decoder()` returned; its `layers` are hooked.
        adapters: name -> adapter with `layers: ModuleDict`, keyed by decoder layer index.

    Raises:
        UserError: the decoder has no list of layers, or carries the hooks of another seam.
    """

    def __init__(self, decoder: nn.Module, adapters: nn.ModuleDict) -> None:
        layers = getattr(decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList):
            raise UserError(
                f"{type(decoder).__name__} has no list of layers named 'layers'; expected a Llama-style decoder"
            )
        if any(isinstance(hook, DecoderHook) for hook in decoder._forward_pre_hooks.values()):
            raise UserError(
                f"this {type(decoder).__name__} is already a FrozenDecoder's; expected release() on that one"
            )
        self.decoder = decoder
        self.layers = layers
        self.adapters = adapters
        self.order: list[str] = []
        # Read by the decoder's hook when the caller cannot pass the keyword itself: generate() refuses unknown ones.
        self.memory: CrossMemory | None = None
        self._handles = [decoder.register_forward_pre_hook(DecoderHook(self), with_kwargs=True)]
        for index, layer in enumerate(layers):
            self._handles.append(layer.register_forward_pre_hook(LayerHook(self, index), with_kwargs=True))

    def update_order(self) -> None:
        """Order of use on one layer is order of attachment, but video reads before image (spec A5.2)."""
        order = list(self.adapters.keys())
        if "image" in order and "video" in order:
            order.remove("video")
            order.insert(order.index("image"), "video")
        self.order = order

    def remove(self) -> None:
        """Take every hook off the decoder."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def using(self, memory: CrossMemory | None) -> Iterator[None]:
        """Serve this memory to every decoder call inside."""
        self.memory = memory
        try:
            yield
        finally:
            self.memory = None

    def enable_checkpointing(self) -> None:
        """Make every layer able to recompute. It does so only in a call inside `recomputing`.

        Raises:
            UserError: the layers do not follow the checkpointing protocol of transformers.
        """
        for layer in self.layers:
            if not isinstance(layer, GradientCheckpointingLayer):
                raise UserError(
                    f"{type(layer).__name__} cannot recompute activations; expected a GradientCheckpointingLayer"
                )
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(_checkpoint_in_eval, layer)  # type: ignore[assignment]

    @contextmanager
    def recomputing(self, first: int) -> Iterator[None]:
        """Layers from `first` up store only their inputs for backward, and so do their adapters.

        A layer of transformers recomputes only if its own `training` flag is set, so that one flag is raised for the
        call; its children, dropout among them, stay in eval mode.
        """
        layers = list(self.layers)[first:]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False


class DecoderHook:
    """Pre-hook of the decoder: adds what this call may see as the keyword `cross_memory`."""

    def __init__(self, seam: Seam) -> None:
        self.seam = seam

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        memory = kwargs.get(KEYWORD, self.seam.memory)
        if memory is None or isinstance(memory, Probe):
            return None
        inputs = kwargs.get("input_ids", args[0] if args else None)
        if inputs is None:
            inputs = kwargs["inputs_embeds"]
        rows, length = inputs.shape[:2]
        if rows != memory.batch_size:
            memory = self._expand(memory, rows)
        # Only the cache knows which columns of the sequence this call covers: left padding shifts the position ids.
        cache = kwargs.get("past_key_values")
        start = 0 if cache is None else cache.get_seq_length()
        if isinstance(start, int) and start >= memory.prompt_length and not torch.compiler.is_compiling():
            visible = {name: one.afterwards for name, one in memory.by_adapter.items()}
        else:
            columns_T = torch.arange(length, device=inputs.device) + start
            visible = {name: one.visible(columns_T) for name, one in memory.by_adapter.items()}
        return args, {**kwargs, KEYWORD: _Call(memory, visible)}

    def _expand(self, memory: CrossMemory, rows: int) -> CrossMemory:
        """`generate` repeats every prompt for its beams or samples; the memory follows, once."""
        if memory is not self.seam.memory or rows % memory.batch_size:
            raise ValueError(f"the batch has {rows} rows, its memory {memory.batch_size}; expected as many")
        self.seam.memory = memory.expand(rows // memory.batch_size)
        return self.seam.memory


class LayerHook:
    """Pre-hook of a layer: takes the keyword away and lets the layer's adapters add to the hidden states."""

    def __init__(self, seam: Seam, index: int) -> None:
        self.seam = seam
        self.index = index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HookResult:
        if KEYWORD not in kwargs:
            return None
        kwargs = dict(kwargs)
        call = kwargs.pop(KEYWORD)
        if isinstance(call, Probe):
            call.reached.add(self.index)
        elif args:
            args = (self._adapt(module, args[0], call), *args[1:])
        else:
            kwargs["hidden_states"] = self._adapt(module, kwargs["hidden_states"], call)
        return args, kwargs

    def _adapt(self, layer: nn.Module, hidden_BTD: Tensor, call: _Call) -> Tensor:
        for name in self.seam.order:
            blocks: Any = self.seam.adapters[name].layers
            if name not in call.visible or str(self.index) not in blocks:
                continue
            one, visible = call.memory.by_adapter[name], call.visible[name]
            block = blocks[str(self.index)]
            kv = (one.keys[self.index], one.values[self.index])
            inputs = (hidden_BTD, *kv, visible.mask_BTS, visible.row_valid_BT, visible.readers)
            # The flag is down where transformers already runs this hook inside its own recomputation (5.17).
            if layer.training:
                hidden_BTD = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # type: ignore
            else:
                hidden_BTD = block(*inputs)
        return hidden_BTD


def _checkpoint_in_eval(layer: nn.Module, function: Any, *args: Any) -> Any:
    """Checkpointing function of a layer: lowers the flag that led here; forward and recomputation run in eval mode."""
    layer.training = False
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
