"""How large attention masks become: none may grow with the square of anything."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from scripts.benchmarks.captioning import Job, captioning_batch, captioning_model
from scripts.benchmarks.case import Settings


class LargestMask(TorchFunctionMode):
    """Within, `bytes` is the size, as it lies in memory, of the largest mask given to scaled dot-product attention."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            self.bytes = max(self.bytes, 0 if mask is None else mask.untyped_storage().nbytes())
        return func(*args, **kwargs)


def mask_growth(settings: Settings) -> float:
    """The exponent with which the largest mask grows when captions become twice as long."""
    size, found = settings.size, []
    for longest in (size.text[-2], size.text[-1]):
        job = Job(batch=size.sweep_batch, caption=(longest // 2, longest))
        model = captioning_model(settings, job)
        batch = captioning_batch(model, settings, job)
        with torch.no_grad(), LargestMask() as masks:
            model.loss(batch)
        found.append((int(batch.attention_mask.sum(1).max()), masks.bytes))
    (shorter, small), (longer, large) = found
    return math.log(large / small) / math.log(longer / shorter) if small else 0.0
