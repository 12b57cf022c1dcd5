import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal.cross_attention import GatedCrossAttention
from multimodal.layers import SwiGLU, TanhGate
from multimodal.memory import AdapterMemory


def block(gate: float = 0.7, n_layers: int | None = None) -> GatedCrossAttention:
    torch.manual_seed(0)
    made = GatedCrossAttention(dim=32, heads=4, kv_heads=2, head_dim=8, ffn_dim=48, n_layers=n_layers)
    with torch.no_grad():
        made.attn_gate.weight.fill_(gate)
        made.ffn_gate.weight.fill_(gate)
    return made


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [3, 5, 32], memory [3, 6, 32], and a mask: row 1 sees nothing, row 2 does from position 2 on."""
    torch.manual_seed(1)
    mask = torch.ones(3, 5, 6, dtype=torch.bool)
    mask[0, :, 4:] = False
    mask[1] = False
    mask[2, :2] = False
    return torch.randn(3, 5, 32), torch.randn(3, 6, 32), mask


def test_equals_the_formula_written_out():
    made, (x, memory, mask) = block(), inputs()
    mask[:] = True
    with torch.no_grad():
        for norm in (made.attn_norm, made.ffn_norm, made.q_norm, made.k_norm):
            norm.weight.normal_(1, 0.2)

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    def heads(x: Tensor, count: int) -> Tensor:
        return x.view(3, -1, count, 8).transpose(1, 2)

    q = rms(heads(rms(x, made.attn_norm.weight) @ made.q_proj.weight.T, 4), made.q_norm.weight)
    k = rms(heads(memory @ made.k_proj.weight.T, 2), made.k_norm.weight).repeat_interleave(2, 1)
    v = heads(memory @ made.v_proj.weight.T, 2).repeat_interleave(2, 1)
    a = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(3, 5, 32) @ made.o_proj.weight.T
    y = x + torch.tanh(torch.tensor(0.7)) * a
    z = rms(y, made.ffn_norm.weight)
    z = (F.silu(z @ made.ffn.gate.weight.T) * (z @ made.ffn.up.weight.T)) @ made.ffn.down.weight.T
    expected = y + torch.tanh(torch.tensor(0.7)) * z
    torch.testing.assert_close(made(x, *made.project(memory), mask, mask.any(-1)), expected)


def test_rows_that_see_nothing_are_unchanged_to_the_bit_and_the_others_are_not():
    made, (x, memory, mask) = block(), inputs()
    out, valid = made(x, *made.project(memory), mask, mask.any(-1)), mask.any(-1)
    assert torch.equal(out[~valid], x[~valid])
    assert ((out - x)[valid].abs().amax(-1) > 1e-3).all()


def test_masked_memory_changes_nothing_and_gives_no_gradient():
    made, (x, memory, mask) = block(), inputs()
    out = made(x, *made.project(memory), mask, mask.any(-1))
    other = memory.clone()
    other[0, 4:] += 10
    other[1] += 10
    assert torch.equal(out, made(x, *made.project(other), mask, mask.any(-1)))
    memory.requires_grad_()
    made(x, *made.project(memory), mask, mask.any(-1)).square().sum().backward()
    assert memory.grad is not None and memory.grad.isfinite().all()
    assert not memory.grad[0, 4:].any() and not memory.grad[1].any() and memory.grad[2].any()


def test_closed_gates_are_the_identity_and_only_gates_move_first():
    made, (x, memory, mask) = block(gate=0), inputs()
    optimizer = torch.optim.SGD(made.parameters(), lr=1e-3)  # a step of 1 would saturate the gates
    assert torch.equal(made(x, *made.project(memory), mask, mask.any(-1)), x)
    for step in range(2):
        optimizer.zero_grad()
        made(x, *made.project(memory), mask, mask.any(-1)).square().sum().backward()
        moved = {name for name, p in made.named_parameters() if p.grad is not None and p.grad.any()}
        gates = {"attn_gate.weight", "ffn_gate.weight"}
        assert moved == (gates if step == 0 else {name for name, _ in made.named_parameters()})
        optimizer.step()


def test_mixed_precision_keeps_the_dtype_of_the_hidden_states():
    made, (x, memory, mask) = block(), inputs()
    expected = made(x, *made.project(memory), mask, mask.any(-1))
    out = made(x.bfloat16(), *made.project(memory.bfloat16()), mask, mask.any(-1))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        keys_values = made.project(memory)
        out = made(x, *keys_values, mask, mask.any(-1))
    assert out.dtype == torch.float32 and keys_values[0].dtype == keys_values[1].dtype
    torch.testing.assert_close(out, expected, atol=0.1, rtol=0.1)
    # Keys made under autocast, read without it, as a cached prompt may be.
    torch.testing.assert_close(made(x, *keys_values, mask, mask.any(-1)), expected, atol=0.1, rtol=0.1)


def test_initialisation():
    torch.manual_seed(0)
    made = GatedCrossAttention(dim=128, heads=8, kv_heads=2, head_dim=16, ffn_dim=256, n_layers=8)
    for projection in (made.q_proj, made.k_proj, made.v_proj, made.ffn.gate, made.ffn.up):
        assert projection.weight.std().item() == pytest.approx(128**-0.5, rel=0.1)
    for projection in (made.o_proj, made.ffn.down):
        std = projection.in_features**-0.5 / 4
        assert projection.weight.std().item() == pytest.approx(std, rel=0.1)


def test_small_layers():
    torch.manual_seed(0)
    x, swiglu, gate = torch.randn(2, 3, 8), SwiGLU(8, 12), TanhGate()
    assert swiglu(x).shape == x.shape and all(p.ndim == 2 for p in swiglu.parameters())
    assert not gate(x).any()
    gate.weight.data.fill_(0.5)
    torch.testing.assert_close(gate(x), x * 0.46211716)


PARTS = {
    "rows and columns": ([[0, 0, 0, 1, 1, 1], [0] * 6, [0, 0, 1, 1, 2, 2]], [[1] * 5, [-1] * 5, [1, 1, 2, 2, -1]]),
    "no mask": ([[0, 0, 1, 1, 1, 1], [0] * 6, [0, 0, 1, 1, 1, 1]], [[1] * 5, [-1] * 5, [1] * 5]),
    "columns": ([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]], [[1] * 5] * 3),
    "all, without a mask": ([[1] * 6] * 3, [[1] * 5] * 3),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_nobody_reads_is_left_out_of_the_computation_and_changes_nothing(name: str) -> None:
    made = block()
    token_group, memory_group = (torch.tensor(groups) for groups in PARTS[name])
    k, v = made.project(torch.randn(3, 5, 32))
    seen = AdapterMemory({0: k}, {0: v}, memory_group, token_group).visible(torch.arange(6))
    assert seen.readers is not None
    rows, first = seen.readers.rows_R, seen.readers.first
    assert (3 if rows is None else rows.tolist()) == ([0, 2] if name in ("rows and columns", "no mask") else 3)
    assert first == (0 if name == "all, without a mask" else 2)
    assert seen.readers.unmasked == ("mask" in name)
    results, sizes = [], []
    made.q_proj.register_forward_hook(lambda _m, args, _o: sizes.append(tuple(args[0].shape[:2])))
    for readers in (None, seen.readers):
        hidden = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = made(hidden, k, v, seen.mask_BTS, seen.row_valid_BT, readers)
        (gradient,) = torch.autograd.grad(out.square().sum(), hidden, retain_graph=True)
        weights = torch.autograd.grad(out.square().sum(), [*made.parameters()], retain_graph=True)
        results.append((hidden.detach(), out.detach(), gradient, *weights))
    assert sizes == [(3, 6), (3 if rows is None else len(rows), 6 - first)]
    for plain, sliced in zip(*results, strict=True):
        torch.testing.assert_close(sliced, plain, atol=1e-5, rtol=1e-5)
    hidden, out = results[1][:2]
    assert torch.equal(out[~seen.row_valid_BT], hidden[~seen.row_valid_BT])


def test_where_nobody_reads_nothing_is_computed() -> None:
    made, hidden = block(), torch.randn(2, 4, 32)
    k, v = made.project(torch.randn(2, 5, 32))
    memory = AdapterMemory({0: k}, {0: v}, torch.full((2, 5), -1), torch.zeros(2, 4, dtype=torch.long))
    seen = memory.visible(torch.arange(4))
    made.q_proj.register_forward_hook(lambda _m, _a, _o: pytest.fail("computed"))
    assert made(hidden, k, v, seen.mask_BTS, seen.row_valid_BT, seen.readers) is hidden
    assert memory.visible(torch.arange(1)).readers is None, "a generated token: not worth looking"
