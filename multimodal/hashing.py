"""The hash by which weights are known again: a decoder's in an adapter folder, an encoder's in a feature cache."""

import hashlib

import torch
from torch import nn


def weights_sha256(module: nn.Module) -> str:
    """Hash over names, dtypes, shapes and bytes of a module's weights; tied weights count once."""
    digest, done = hashlib.sha256(), set()
    for name, tensor in sorted(module.state_dict(keep_vars=True).items()):
        if id(tensor) in done:
            continue
        done.add(id(tensor))
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # Viewed as bytes because numpy knows no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
