"""The hash by which weights are known again: a decoder's in an adapter folder, an encoder's in a feature cache."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def weights_sha256(module: nn.Module) -> str:
    """Hash over names, dtypes, shapes and bytes of a module's weights; tied weights count once. Of a quantised
    weight it covers every tensor that it is made of."""
    digest, done = hashlib.sha256(), set()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if id(tensor) in done:
            continue
        done.add(id(tensor))
        for part, plain in _plain_tensors(name, tensor.detach()):
            digest.update(f"{part} {plain.dtype} {tuple(plain.shape)}\n".encode())
            # Viewed as bytes because numpy knows no bfloat16.
            digest.update(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain_tensors(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor, or the tensors within one that is made of several, each with its name."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    inner, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    for part in inner:
        yield from _plain_tensors(f"{name}.{part} as {tensor.dtype}", getattr(tensor, part))
