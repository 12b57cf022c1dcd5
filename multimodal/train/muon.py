"""Muon for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon), AdamW for all else, as one optimizer."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from multimodal.train.precision import has_fast_bf16

# Shapes: N matrices of R rows and C columns, of which S is the smaller.

# So many numbers are stacked at most: products of large matrices are fast by themselves, and copies of them are large.
_STACKED_NUMBERS = 2**24


def orthogonalise(
    updates_NRC: Tensor, *, coefficients: tuple[float, float, float], steps: int, dtype: torch.dtype
) -> Tensor:
    """Each matrix with all its singular values brought near 1 (between 0.7 and 1.2), by `steps` of Newton-Schulz.

    Computed and returned in `dtype`.
    """
    linear, cubic, quintic = coefficients
    tall = updates_NRC.shape[1] > updates_NRC.shape[2]
    x_NSC = (updates_NRC.mT if tall else updates_NRC).to(dtype)
    x_NSC = x_NSC / torch.linalg.matrix_norm(x_NSC, keepdim=True).clamp(min=1e-7)
    if dtype == torch.float32 and x_NSC.shape[2] >= 2 * x_NSC.shape[1]:
        x_NSC = _product_of_factors(x_NSC @ x_NSC.mT, coefficients, steps) @ x_NSC
    else:
        for _ in range(steps):
            gram_NSS = x_NSC @ x_NSC.mT
            factor_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=cubic, alpha=quintic)
            x_NSC = torch.baddbmm(x_NSC, factor_NSS, x_NSC, beta=linear)
    return x_NSC.mT if tall else x_NSC


def _product_of_factors(gram_NSS: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """What all steps multiply a matrix by. Each factor is a polynomial of the Gram matrix, and so is the next Gram
    matrix: the matrix itself, if it is long, takes part twice and not ten times. bf16 has too few digits for that.
    """
    linear, cubic, quintic = coefficients

    def factor(gram_NSS: Tensor) -> Tensor:
        found_NSS = torch.baddbmm(gram_NSS, gram_NSS, gram_NSS, beta=cubic, alpha=quintic)
        found_NSS.diagonal(dim1=-2, dim2=-1).add_(linear)
        return found_NSS

    product_NSS = factor_NSS = factor(gram_NSS)
    for _ in range(steps - 1):
        gram_NSS = factor_NSS @ gram_NSS @ factor_NSS
        factor_NSS = factor(gram_NSS)
        product_NSS = factor_NSS @ product_NSS
    return product_NSS


class Muon(torch.optim.Muon):
    """torch's Muon, but that matrices of equal shape share their products: a small model has dozens, each too small to
    be fast.

    The iteration is computed in bf16, as in torch, where the device multiplies that in hardware, and else in fp32:
    emulated, it is forty times slower.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            alike: defaultdict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike[matrix.shape, matrix.device].append(matrix)
            for matrices in alike.values():
                count = max(1, _STACKED_NUMBERS // matrices[0].numel())
                for start in range(0, len(matrices), count):
                    self._update(matrices[start : start + count], group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        dtype = torch.bfloat16 if has_fast_bf16(matrices[0].device) else torch.float32
        updates_NRC = orthogonalise(
            torch.stack([self._averaged(matrix, group["momentum"]) for matrix in matrices]),
            coefficients=group["ns_coefficients"],
            steps=group["ns_steps"],
            dtype=dtype,
        )
        rate = float(group["lr"])
        # The size of AdamW's updates (Liu et al. 2025, arXiv 2502.16982), so that both take the same learning rates.
        scale = 0.2 * max(matrices[0].shape) ** 0.5
        for matrix, update in zip(matrices, updates_NRC, strict=True):
            matrix.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * scale)

    def _averaged(self, matrix: Tensor, momentum: float) -> Tensor:
        """The gradient, averaged over the steps, and with Nesterov's look ahead."""
        gradient, state = matrix.grad, self.state[matrix]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        return gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - momentum), momentum)


class MuonWithAdamW(torch.optim.Optimizer):
    """The two optimizers, each over its groups.

    Args:
        groups: parameters as torch's optimizers take them, with all that is in a group beside them.
        matrices: those that Muon trains, where they are in a group; two-dimensional.
        betas, fused: AdamW's.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        matrices: Iterable[Tensor],
        *,
        betas: tuple[float, float],
        fused: bool = False,
    ) -> None:
        chosen = {id(matrix) for matrix in matrices}
        # Each fills in its settings, in the very groups that are kept here.
        both = [
            [{**g, "params": [p for p in g["params"] if (id(p) in chosen) == of_muon]} for g in groups]
            for of_muon in (True, False)
        ]
        flat, others = ([group for group in some if group["params"]] for some in both)
        self._inner: list[torch.optim.Optimizer] = [Muon(flat, adjust_lr_fn="match_rms_adamw")] if flat else []
        self._inner += [torch.optim.AdamW(others, betas=betas, fused=fused)] if others else []
        super().__init__([*flat, *others], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient.

        Raises:
            NotImplementedError: a closure is given.
        """
        if closure is not None:
            raise NotImplementedError("Muon beside AdamW evaluates no closure")
        for inner in self._inner:
            # Groups and state are this one's, also where they come out of a checkpoint.
            of_muon = isinstance(inner, Muon)
            inner.param_groups = [group for group in self.param_groups if ("ns_steps" in group) == of_muon]
            inner.state = self.state
            inner.step()
