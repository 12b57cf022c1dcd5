"""Layers that are run once cost what they would each for itself."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from multimodal.meta_layers import layers_once
from multimodal.meta_run import META, Pieces, RunCost, trained


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * self.branch(x)


def cost(*, once: bool, train: bool, checkpointing: bool) -> RunCost:
    layers = [Layer(64).to(META) for _ in range(5)]
    weights = [p for layer in layers for p in layer.parameters()]

    def forward() -> list[Tensor]:
        x = torch.empty(4, 128, 64, device=META, requires_grad=True)
        for layer in layers:
            x = checkpoint(layer, x, 2.0, use_reentrant=False) if checkpointing else layer(x, 2.0)
        return [x]  # type: ignore[list-item]

    pieces = Pieces(torch.bfloat16)
    short = layers_once(layers, pieces.kernels) if once else nullcontext()
    with trained(weights if train else [], weights), pieces, short:
        pieces.run("layers", forward)
        return pieces.finish()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_layer_stands_for_those_like_it(train: bool, checkpointing: bool) -> None:
    short = cost(once=True, train=train, checkpointing=checkpointing)
    whole = cost(once=False, train=train, checkpointing=checkpointing)
    assert short.pieces == whole.pieces
    assert short.kept == pytest.approx(whole.kept, rel=0.02)
    assert short.peak == pytest.approx(whole.peak, rel=0.1)


def test_other_shapes_are_run_for_themselves() -> None:
    layers = [Layer(64).to(META), Layer(64).to(META)]
    with Pieces() as pieces, layers_once(layers, pieces.kernels), torch.no_grad():
        for i, rows in enumerate((8, 24)):
            pieces.run(str(i), lambda i=i, rows=rows: [layers[i](torch.empty(rows, 64, device=META))])
        short, long = pieces.finish().pieces
    assert long.forward == 3 * short.forward > 0
    assert all("forward" not in vars(layer) for layer in layers)
