"""Activations that wait for backward in the CPU's memory instead of the GPU's.

Where layers are recomputed (checkpointing), these are their inputs alone.
"""

import torch
from torch import Tensor, nn

SMALLEST = 4096
"""Bytes; a smaller tensor is not worth the way."""
_Waiting = Tensor | tuple[torch.device, Tensor]


def activations_on_cpu() -> torch.autograd.graph.saved_tensors_hooks:
    """Context of a forward pass: what it saves for backward goes to the CPU, and comes back when backward asks for it.

    Weights stay where they are (`torch.autograd.graph.save_on_cpu` would move a frozen decoder with every step).
    """
    return torch.autograd.graph.saved_tensors_hooks(_send, _fetch)


def _send(tensor: Tensor) -> _Waiting:
    if tensor.nbytes < SMALLEST or _is_weight(tensor):
        return tensor
    # Pinned memory lets the copy run beside the computation; on one stream both ways keep their order.
    there = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False)
    return tensor.device, there.copy_(tensor.detach(), non_blocking=True)


def _fetch(waiting: _Waiting) -> Tensor:
    if isinstance(waiting, Tensor):
        return waiting
    device, there = waiting
    return there.to(device, non_blocking=True)


def _is_weight(tensor: Tensor) -> bool:
    """A parameter, a view of one, or autocast's cast of one."""
    whole = tensor if tensor._base is None else tensor._base
    if isinstance(whole, nn.Parameter):
        return True
    made_by = whole.grad_fn
    if made_by is None or made_by.name() != "ToCopyBackward0":
        return False
    source = made_by.next_functions[0][0]
    return source is not None and source.name() == "torch::autograd::AccumulateGrad"
