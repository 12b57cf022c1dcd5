"""Weights are known again by their hash: any change of a bit, a name or a type makes another one."""

import torch
from torch import nn

from multimodal.hashing import weights_sha256


def test_every_change_makes_another_hash_and_a_copy_none() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    same = nn.Linear(3, 2)
    same.load_state_dict(layer.state_dict())
    assert weights_sha256(same) == weights_sha256(layer)
    with torch.no_grad():
        same.weight[0, 0] += 1e-3
    renamed = nn.Sequential(layer)
    hashes = {weights_sha256(module) for module in (layer, same, renamed, nn.Linear(2, 3))}
    assert len(hashes | {weights_sha256(layer.to(torch.bfloat16))}) == 5
