"""How many bytes autograd keeps between forward and backward, measured on real tensors."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_bytes(forward: Callable[[], object], *modules: nn.Module) -> int:
    """Bytes of the storages that `forward` saves for backward, each once, without the modules' own weights."""
    own = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
    found: dict[int, int] = {}
    kept: list[Tensor] = []  # alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(found.values())
