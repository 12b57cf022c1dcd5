from typing import Any

import pytest
import torch
from torch import Tensor

from multimodal.attention import attend


def inputs(heads: int = 4, kv_heads: int = 2, queries: int = 5, keys: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, heads, queries, 8), (2, kv_heads, keys, 8), (2, kv_heads, keys, 8))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Softmax attention written out, with key/value heads repeated."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ v


def test_grouped_heads_equal_repeated_heads_with_any_mask():
    q, k, v = inputs()
    mask = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    torch.testing.assert_close(attend(q, k, v, mask=mask), plain(q, k, v, mask))
    per_head = mask.repeat(1, 4, 1, 1)
    per_head[:, 1, :, 3:] = False
    torch.testing.assert_close(attend(q, k, v, mask=per_head), plain(q, k, v, per_head))


@pytest.mark.parametrize("keys", [5, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_causal_rows_end_at_their_own_key(keys: int, masked: bool):
    q, k, v = inputs(keys=keys)
    past = torch.arange(keys) <= torch.arange(5)[:, None] + keys - 5
    mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    mask[1, ..., 1] = False
    expected = plain(q, k, v, past & mask if masked else past[None, None])
    torch.testing.assert_close(attend(q, k, v, mask=mask if masked else None, causal=True), expected)


def test_rows_that_see_nothing_give_zero_and_pass_no_gradient():
    q, k, v = (x.requires_grad_() for x in inputs())
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
    mask[0, :, 1] = False
    mask[1] = False
    row_valid = mask.any(-1)[:, 0]
    out = attend(q, k, v, mask=mask, row_valid=row_valid)
    assert torch.equal(out[0, :, 1], torch.zeros(4, 8)) and torch.equal(out[1], torch.zeros(4, 5, 8))
    torch.testing.assert_close(out[0, :, [0, 2, 3, 4]], attend(q, k, v)[0, :, [0, 2, 3, 4]])
    out.square().sum().backward()
    for x in (q, k, v):
        assert x.grad is not None and x.grad.isfinite().all()
        assert not x.grad[1].any() and x.grad[0].any()


def test_no_keys_at_all_give_zero():
    q, k, v = inputs(keys=0)
    assert torch.equal(attend(q, k, v), torch.zeros_like(q))


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        attend(*inputs(heads=3, kv_heads=2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("written_out", [False, True])
def test_training_in_bf16_on_a_cpu_stays_close_to_fp32_and_keeps_the_dtype(
    written_out: bool, masked: bool, causal: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("multimodal.attention.MOST_SCORES", 2 * 4 * 5 * 5 if written_out else 0)
    keys = 5
    mask = torch.rand(2, 1, 5, keys, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    settings: dict[str, Any] = {"mask": mask if masked else None, "causal": causal}
    exact, rough = ([x.to(d).requires_grad_() for x in inputs(keys=keys)] for d in (torch.float32, torch.bfloat16))
    expected = attend(*exact, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(*rough, **settings)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.03, rtol=0.03)
    expected.sum().backward()
    out.float().sum().backward()
    for a, b in zip(exact, rough, strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(b.grad.float(), a.grad, atol=0.05, rtol=0.05)
