"""What a run on the meta device says it costs, against what real tensors cost."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from multimodal.attention import attend
from multimodal.meta_run import META, Meter, Pieces, trained
from tests.saved_bytes import saved_bytes


def block() -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))


def piece_of(module: nn.Module, dtype: torch.dtype | None, x: Tensor):
    with trained(module.parameters(), ()), Pieces(dtype) as pieces:
        pieces.run("block", lambda: [module(x)])
        return pieces.finish()


def test_operations_are_those_that_flop_counter_counts() -> None:
    real, x = block(), torch.randn(8, 64)
    with FlopCounterMode(display=False) as counter:
        real(x).sum().backward()
    cost = piece_of(block().to(META), None, torch.empty(8, 64, device=META))
    assert sum(piece.forward + piece.backward for piece in cost.pieces) == counter.get_total_flops()


def test_kept_bytes_are_those_that_autocast_saves() -> None:
    real, x = block(), torch.randn(512, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        saved = saved_bytes(lambda: real(x), real)
    cost = piece_of(block().to(META), torch.bfloat16, torch.empty(512, 64, device=META))
    output = 512 * 64 * 2
    assert cost.kept - output == pytest.approx(saved - x.nbytes, rel=0.02)


def test_frozen_weights_cost_no_gradient_of_theirs() -> None:
    frozen, learning = block().to(META).requires_grad_(False), block().to(META)
    x = torch.empty(8, 64, device=META, requires_grad=True)
    half, whole = (piece_of_frozen(m, x) for m in (frozen, learning))
    assert half.forward == whole.forward == half.backward and whole.backward == 2 * whole.forward


def piece_of_frozen(module: nn.Module, x: Tensor):
    with Pieces() as pieces:
        pieces.run("block", lambda: [module(x)])
        return pieces.finish().pieces[0]


def test_attention_is_counted_once_forwards_and_twice_backwards() -> None:
    q, k = (torch.empty(2, heads, length, 16, device=META, requires_grad=True) for heads, length in ((4, 5), (2, 7)))
    with Pieces() as pieces:
        pieces.run("attention", lambda: [attend(q, k, k)])
        (cost,) = pieces.finish().pieces
    assert cost.forward == 2 * (2 * 4 * 5 * 7 * 16) * 2 and cost.backward == 2 * cost.forward


def test_bytes_live_as_long_as_their_tensors() -> None:
    with Meter() as meter:
        a = torch.empty(1000, device=META)
        b = a.view(10, 100)
        c = a + 1
        assert meter.live == 8000
        del a, c
        assert meter.live == 4000  # the view holds on to it
        del b
    assert meter.live == 0 and meter.peak == 8000


def cost_with(run: Callable[[nn.Module, Tensor], Tensor]):
    x, layers = torch.empty(512, 64, device=META), [block().to(META) for _ in range(6)]

    def forward() -> list[Tensor]:
        y = x
        for layer in layers:
            y = y + run(layer, y)
        return [y]

    with trained([p for layer in layers for p in layer.parameters()], ()), Pieces() as pieces:
        pieces.run("blocks", forward)
        return pieces.finish()


def test_checkpointing_keeps_less_and_computes_more() -> None:
    plain = cost_with(lambda layer, y: layer(y))
    again = cost_with(lambda layer, y: checkpoint(layer, y, use_reentrant=False))  # type: ignore[arg-type, return-value]
    assert again.kept < plain.kept / 4 and again.peak < plain.peak / 2
    assert again.pieces[0].forward == plain.pieces[0].forward
    assert plain.pieces[0].backward < again.pieces[0].backward <= plain.pieces[0].backward + plain.pieces[0].forward
