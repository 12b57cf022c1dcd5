"""Layers that are alike cost alike: one of them goes through the meta device, the others only spend the same.

Models are deep, and every operation on the meta device takes its tenth of a millisecond; this makes seconds of minutes.

Legend: x is what a layer gets and gives, [..., D].
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from multimodal.meta_run import META, Kernels, run_backward


@dataclass(frozen=True)
class _LayerCost:
    """Of one layer: operations forwards, forwards again in backward (checkpointing) and backwards; bytes that it keeps
    between, those of autocast's copies of its weights, and those that it needs for a moment in either direction; and
    whether it keeps its input as well."""

    forward: int
    again: int
    backward: int
    kept: int
    copies: int
    peak_forward: int
    peak_backward: int = 0
    keeps_input: bool = False


class _LikeLayer(torch.autograd.Function):
    """Spends what a layer spends, in one operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cost: _LayerCost, kernels: Kernels, grad: bool) -> Tensor:
        meter, in_backward = kernels.meter, torch._C._current_graph_task_id() != -1
        meter.flops += cost.again if in_backward else cost.forward
        meter.need(cost.peak_forward)
        ctx.cost, ctx.meter = cost, meter
        if grad:
            copies = _blob(cost.copies)
            if cost.copies:
                kernels.hold(copies)
            ctx.save_for_backward(_blob(cost.kept), copies, *([x] if cost.keeps_input else []))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        _ = ctx.saved_tensors  # with checkpointing this is what recomputes
        ctx.meter.flops += ctx.cost.backward
        ctx.meter.need(ctx.cost.peak_backward)
        return torch.empty_like(grad_outputs[0]), None, None, None


def _blob(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=META)


class _LayerOnce:
    """Stands in the place of a layer's `forward`, whose first argument alone is what it is differentiated by."""

    def __init__(self, layer: nn.Module, costs: dict[Any, _LayerCost], kernels: Kernels) -> None:
        self.layer: Any = layer
        self.costs, self.kernels, self.original = costs, kernels, layer.forward
        weights = tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters())
        self.kind = (type(layer), weights, getattr(layer, "attention_type", None))

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        grad = torch.is_grad_enabled() and x.requires_grad
        # Where transformers recomputes within a layer's forward (5.23) and not around it (5.17), it is done here.
        recomputes = layer.training and getattr(layer, "gradient_checkpointing", False)
        key = (self.kind, x.shape, x.dtype, grad)
        if key not in self.costs:
            training, layer.training = layer.training, layer.training and not recomputes
            self.costs[key] = self._measure(lambda x: self.original(x, *args, **kwargs), x, grad)
            layer.training = training

        def spend(x: Tensor) -> Tensor:
            return _LikeLayer.apply(x, self.costs[key], self.kernels, grad)

        return layer._gradient_checkpointing_func(spend, x) if recomputes else spend(x)

    def _measure(self, layer: Callable[[Tensor], Tensor], x: Tensor, grad: bool) -> _LayerCost:
        meter, kernels = self.kernels.meter, self.kernels
        # Hooks of its own: this may stand inside a recomputed call, whose hooks let go of everything that is saved.
        saved: set[int] = set()

        def pack(tensor: Tensor) -> Tensor:
            saved.add(tensor.untyped_storage()._cdata)
            return tensor.detach()

        with torch.set_grad_enabled(grad), saved_tensors_hooks(pack, lambda tensor: tensor):
            x = x.detach().requires_grad_(grad)
            with meter.aside() as start, kernels.autocast() as copied:
                out = layer(x)
                flops, peak, live = meter.flops, meter.peak - start, meter.live
                copies = sum(copy.untyped_storage().nbytes() for copy in copied.values())
                kept = live - start - out.untyped_storage().nbytes() - copies
                if not grad:
                    return _LayerCost(flops, 0, 0, 0, 0, peak)
                run_backward([out], [torch.empty_like(out)])
                backward, peak_backward = meter.flops - flops, meter.peak - live
                keeps_input = x.untyped_storage()._cdata in saved
            with meter.aside(), kernels.autocast():
                out = cast(Tensor, checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False))
                run_backward([out], [torch.empty_like(out)])
                again = meter.flops - flops - backward
        return _LayerCost(flops, again, backward, kept, copies, peak, peak_backward, keeps_input)


@contextmanager
def layers_once(layers: Iterable[nn.Module], kernels: Kernels) -> Iterator[None]:
    """Within: of layers that are alike one is run, the others spend the same."""
    costs: dict[Any, _LayerCost] = {}
    layers = list(layers)
    for layer in layers:
        layer.forward = _LayerOnce(layer, costs, kernels)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
