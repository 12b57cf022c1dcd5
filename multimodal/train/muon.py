"""Muon for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon), AdamW for all else, as one optimizer."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch


class MuonWithAdamW(torch.optim.Optimizer):
    """The optimizers of torch, each over its groups. Muon's updates are scaled to the size of AdamW's (Liu et al. 2025,
    arXiv 2502.16982), so that both take the same learning rates.

    Args:
        groups: parameters as torch's optimizers take them, with all that is in a group beside them.
        matrices: those that Muon trains, where they are in a group; two-dimensional.
        betas, fused: AdamW's.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        matrices: Iterable[torch.Tensor],
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
        self._inner = [torch.optim.Muon(flat, adjust_lr_fn="match_rms_adamw")] if flat else []
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
            of_muon = isinstance(inner, torch.optim.Muon)
            inner.param_groups = [group for group in self.param_groups if ("ns_steps" in group) == of_muon]
            inner.state = self.state
            inner.step()
