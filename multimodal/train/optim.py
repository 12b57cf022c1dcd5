"""The optimizer over what is trained, and the learning-rate schedule.

Every part has its own rate. A part with rate 0 is frozen: no gradient, no optimizer state, not in the checkpoint.
"""

import math
from typing import Any

import torch
from torch import nn

from multimodal.errors import UserError
from multimodal.train.config import TrainConfig
from multimodal.train.low_memory import low_memory_adamw
from multimodal.train.muon import MuonWithAdamW
from multimodal.train.task import Task


def freeze_and_select(task: Task, learning_rates: dict[str, float]) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Set `requires_grad` by the rates and return the parts that are trained.

    Raises `UserError` if the rates and the parts of the task do not match, or if nothing is left to train.
    """
    parts = task.parts()
    needed = {part for part, named in parts.items() if named}
    if not needed <= set(learning_rates) <= set(parts):
        raise UserError(
            f"--learning-rates names {', '.join(sorted(learning_rates)) or 'nothing'}: expected a rate for each of "
            f"{', '.join(sorted(needed))} (0 = frozen)"
        )
    for part in needed:
        for _, parameter in parts[part]:
            parameter.requires_grad_(learning_rates[part] > 0)
    trained = {part: named for part, named in parts.items() if named and learning_rates[part] > 0}
    if not trained:
        raise UserError("--learning-rates freezes every part: expected a rate above 0 for at least one")
    everything = [parameter for named in trained.values() for _, parameter in named]
    if len({id(parameter) for parameter in everything}) != len(everything):
        raise ValueError("a parameter appears twice in the parts of the task")
    if any(parameter.dtype != torch.float32 for parameter in everything):
        raise ValueError("trained parameters must be fp32 (use precision bf16 for fast arithmetic)")
    return trained


def build_optimizer(
    task: Task, trained: dict[str, list[tuple[str, nn.Parameter]]], config: TrainConfig
) -> torch.optim.Optimizer:
    """The optimizer of the settings, with two groups per part: matrices with weight decay, all else without (Muon has
    the weights of linear layers in groups of their own). Groups carry `part` and `peak`.

    Raises `UserError` if the settings ask for an optimizer that is not installed, or cannot do as they say.
    """
    modules = list(task.modules()) if isinstance(task, nn.Module) else []
    embeddings = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    linear = [module.weight for module in modules if isinstance(module, nn.Linear)]
    groups: list[dict[str, Any]] = []
    for part, named in trained.items():
        peak = config.learning_rates[part]
        for decay in (True, False):
            members = [p for name, p in named if decay == (id(p) not in embeddings and is_decayed(name, p))]
            if members:
                weight_decay = config.weight_decay if decay else 0.0
                groups.append({"params": members, "lr": peak, "weight_decay": weight_decay, "part": part, "peak": peak})
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if config.optimizer == "muon":
        if config.master_weights != "fp32":
            raise UserError("--master-weights bf16 goes with adamw and adamw8bit; expected fp32 with --optimizer muon")
        return MuonWithAdamW(groups, [p for p in linear if id(p) not in embeddings], betas=config.betas, fused=fused)
    if (config.optimizer, config.master_weights) != ("adamw", "fp32"):
        return low_memory_adamw(groups, config)
    return torch.optim.AdamW(groups, betas=config.betas, fused=fused)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for the weights of layers, which are called so: not for gates, norms, biases, class tokens,
    latents, or tables of positions and other embeddings."""
    matrix = sum(size > 1 for size in parameter.shape) >= 2
    return matrix and name.endswith("weight")


def learning_rate_factor(config: TrainConfig, step: int, elapsed: float = 0.0) -> float:
    """Fraction of the peak rate for optimizer step `step` (from 0), after `elapsed` seconds.

    With a wall-clock budget, progress is the larger of the steps' and the clock's.
    """
    warmup = config.warmup_steps()
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, config.steps - warmup)
    if config.max_minutes is not None:
        progress = min(1.0, max(progress, elapsed / (config.max_minutes * 60)))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its peak rate times `factor`."""
    for group in optimizer.param_groups:
        rate = group["peak"] * factor
        if isinstance(group["lr"], torch.Tensor):  # torchao's, which wants it changed in place
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def scale_and_clip(optimizer: torch.optim.Optimizer, *, weight: int, clip_norm: float) -> torch.Tensor:
    """Divide summed gradients by the step's weight, clip their norm, and return the norm before clipping."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not parameters:
        return torch.zeros((), device=optimizer.param_groups[0]["params"][0].device)
    torch._foreach_div_([p.grad for p in parameters], float(weight))  # pyright: ignore[reportPrivateImportUsage]
    return torch.nn.utils.clip_grad_norm_(parameters, clip_norm or math.inf)
