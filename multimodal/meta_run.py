"""What a run costs, without running it: tensors without data go through the real modules on torch's meta device.

Every operation there knows its shapes and computes nothing. `Meter` counts what the operations would multiply and the
bytes that would be alive; `Kernels` puts in what a GPU under bf16 autocast does otherwise than the meta device:
products in bf16, fused attention and RMSNorm that keep no intermediate results. `Pieces` runs a chain of modules
forwards, then backwards, and says what each of them spends.

Legend: B batch, H query heads, T queries, S keys, K head width of queries and keys, V that of values.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")
PRODUCTS = (F.linear, F.conv1d, F.conv2d)
"""Functions whose input, weight and bias autocast brings to its dtype."""


class Meter(TorchDispatchMode):
    """Counts floating-point operations (a multiplication and an addition are two) and bytes of live meta tensors.

    Attributes:
        flops: of the operations so far; matrix products, convolutions and attention alone, as is usual.
        live: bytes of the tensors made under this meter that are still there.
        peak: the most that `live` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.live = 0
        self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        self._count(args, born=False)
        out = func(*args, **kwargs)
        self._count(out, born=True)
        self.peak = max(self.peak, self.live)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **kwargs, out_val=out))
        return out

    def _count(self, found: Any, *, born: bool) -> None:
        """Take in storages that are new here; what an operation was given and is new was made by others and is free."""
        if isinstance(found, Tensor):
            if found.is_meta and id(storage := found.untyped_storage()) not in self._storages:
                size = storage.nbytes() if born else 0
                self._storages[id(storage)] = weakref.ref(storage, partial(self._gone, id(storage), size))
                self.live += size
        elif isinstance(found, tuple | list):
            for item in found:
                self._count(item, born=born)

    def need(self, more: int) -> None:
        """So many bytes beside those that live, for a moment."""
        self.peak = max(self.peak, self.live + more)

    @contextmanager
    def aside(self) -> Iterator[int]:
        """Within, operations and the peak are counted anew, and afterwards as if nothing had been; gives `live`."""
        flops, peak = self.flops, self.peak
        self.flops, self.peak = 0, self.live
        try:
            yield self.live
        finally:
            self.flops, self.peak = flops, peak

    def _gone(self, key: int, size: int, _: Any) -> None:
        del self._storages[key]
        self.live -= size


class _Attention(torch.autograd.Function):
    """Fused attention: keeps inputs, output and one number per query; backward is counted as twice forward, without the
    scores that a kernel computes anew."""

    @staticmethod
    def forward(ctx: Any, q_BHTK: Tensor, k_BGSK: Tensor, v_BGSV: Tensor, meter: Meter) -> Tensor:
        batch, heads, queries, _ = q_BHTK.shape
        width = v_BGSV.shape[-1]
        # The layout of the fused kernels: joining the heads afterwards copies nothing.
        out_BHTV = q_BHTK.new_empty(batch, queries, heads, width).transpose(1, 2)
        ctx.save_for_backward(
            q_BHTK, k_BGSK, v_BGSV, out_BHTV, q_BHTK.new_empty(q_BHTK.shape[:-1], dtype=torch.float32)
        )
        ctx.meter, ctx.flops = meter, 2 * q_BHTK.numel() * k_BGSK.shape[2] + 2 * out_BHTV.numel() * k_BGSK.shape[2]
        meter.flops += ctx.flops
        return out_BHTV

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q_BHTK, k_BGSK, v_BGSV, _, _ = ctx.saved_tensors
        ctx.meter.flops += 2 * ctx.flops
        return torch.empty_like(q_BHTK), torch.empty_like(k_BGSK), torch.empty_like(v_BGSV), None


class _RMSNorm(torch.autograd.Function):
    """Fused RMSNorm: keeps its input and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


@dataclass(frozen=True)
class PieceCost:
    """Floating-point operations of a piece, forwards and backwards; the latter without those for frozen weights."""

    name: str
    forward: int
    backward: int


@dataclass(frozen=True)
class RunCost:
    """What a forward and backward pass costs.

    Attributes:
        pieces: operations of each piece, recomputed ones included.
        kept: bytes alive between forward and backward: activations, and autocast's copies of trained weights.
        peak: the most bytes alive at any time beside the modules' weights and the gradients of weights.
    """

    pieces: tuple[PieceCost, ...]
    kept: int
    peak: int

    @property
    def flops(self) -> int:
        """Operations of all pieces in both directions."""
        return sum(piece.forward + piece.backward for piece in self.pieces)


class Kernels(TorchFunctionMode):
    """Calls of torch as a GPU would run them.

    Args:
        meter: told of the operations of attention.
        dtype: of products, as autocast makes them; None: that of the tensors.
    """

    def __init__(self, meter: Meter, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.meter, self.dtype = meter, dtype
        self._copies: dict[int, Tensor] | None = {}

    def end_forward(self) -> None:
        """Leave autocast: its copies of weights are kept by the graph alone from here on."""
        self._copies = None

    def hold(self, copy: Tensor) -> None:
        """Keep a copy of weights as autocast does, until the forward pass ends."""
        if self._copies is not None:
            self._copies[id(copy)] = copy

    @contextmanager
    def autocast(self) -> Iterator[dict[int, Tensor]]:
        """Within, copies of weights are made anew; gives them, by weight."""
        before, self._copies = self._copies, {}
        try:
            yield self._copies
        finally:
            self._copies = before

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not any(isinstance(arg, Tensor) and arg.is_meta for arg in args[:1]):
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            q, k, v = (self._cast(arg) for arg in args[:3])
            return _Attention.apply(q, k, v, self.meter)
        if func is F.rms_norm:
            return _RMSNorm.apply(args[0], kwargs["weight"])
        if self.dtype is not None and func is F.layer_norm:
            return func(args[0].float(), *args[1:], **kwargs)
        if func in PRODUCTS:
            args = [self._cast(arg) if i < 3 else arg for i, arg in enumerate(args)]
        return func(*args, **kwargs)

    def _cast(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or self.dtype is None or tensor.dtype == self.dtype:
            return tensor
        if self._copies is None or not (isinstance(tensor, nn.Parameter) and tensor.requires_grad):
            return tensor.to(self.dtype)
        # Autocast copies a trained weight once for the whole forward pass.
        if id(tensor) not in self._copies:
            self._copies[id(tensor)] = tensor.to(self.dtype)
        return self._copies[id(tensor)]


@dataclass
class _Piece:
    name: str
    outputs: list[Tensor]
    leaves: list[Tensor]
    forward: int
    backward: int = 0


class Pieces:
    """A chain of modules on the meta device, run forwards and then backwards.

    The chain is cut between the pieces, which changes no tensor and no order, only that each piece is counted for
    itself.

    Example:
        >>> with Pieces(torch.bfloat16) as pieces:
        ...     (features,) = pieces.run("encoder", lambda: [encoder(tiles)])
        ...     (hidden,) = pieces.run("decoder", lambda: [decoder(features)])
        ...     cost = pieces.finish()
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.meter = Meter()
        self.kernels = Kernels(self.meter, dtype)
        self._pieces: list[_Piece] = []

    def __enter__(self) -> "Pieces":
        self.meter.__enter__()
        self.kernels.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.kernels.__exit__(*error)
        self.meter.__exit__(*error)

    def run(self, name: str, function: Callable[[], Sequence[Tensor]], *, times: Fraction | int = 1) -> list[Tensor]:
        """Outputs of the next piece, for the pieces after it. `times`: how often it is done, one after the other."""
        before = self.meter.flops
        outputs = list(function())
        leaves = [out.detach().requires_grad_(out.requires_grad) for out in outputs]
        self._pieces.append(_Piece(name, outputs, leaves, int(times * (self.meter.flops - before))))
        return list(leaves)

    def finish(self) -> RunCost:
        """The backward pass, and what all of it costs."""
        self.kernels.end_forward()
        kept, costs = self.meter.live, list[PieceCost]()
        while self._pieces:
            piece = self._pieces.pop()
            before = self.meter.flops
            pairs = [
                (out, torch.empty_like(leaf) if leaf.grad is None else leaf.grad)
                for out, leaf in zip(piece.outputs, piece.leaves, strict=True)
                if out.requires_grad
            ]
            piece.leaves.clear()
            piece.outputs.clear()
            if pairs:
                run_backward([out for out, _ in pairs], [grad for _, grad in pairs])
            del pairs
            costs.insert(0, PieceCost(piece.name, piece.forward, self.meter.flops - before))
        return RunCost(tuple(costs), kept, self.meter.peak)


def run_backward(outputs: list[Tensor], gradients: list[Tensor]) -> None:
    """`torch.autograd.backward` switches function modes off, but what is recomputed in it needs `Kernels`."""
    engine = torch.autograd.Variable._execution_engine
    engine.run_backward(
        tuple(outputs), tuple(gradients), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


@contextmanager
def trained(parameters: Iterable[nn.Parameter], others: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within: `parameters` take gradients, which are dropped at once (they are counted elsewhere), `others` none."""
    for parameter in others:
        parameter.requires_grad_(False)
    hooks = []
    for parameter in parameters:
        hooks.append(parameter.requires_grad_().register_post_accumulate_grad_hook(_drop_gradient))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
