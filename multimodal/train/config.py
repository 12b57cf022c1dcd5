"""The settings of a training run."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from multimodal.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of the training loop; each is a flag. A value out of range raises `UserError` naming the flag."""

    steps: int
    """Optimizer steps in the whole run."""
    batch_size: int
    """Samples per optimizer step."""
    learning_rates: dict[str, float]
    """Peak learning rate of each part of the model. A rate of 0 freezes the part."""
    accumulate: int = 1
    """Micro-batches that the samples of a step are split into, to save memory. Must divide the batch size."""
    warmup: float = 0.05
    """Linear warm-up: a fraction of the steps if below 1, else a number of steps."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    min_lr_ratio: float = 0.1
    """The cosine ends at this fraction of the peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; gates, norms, biases and embeddings have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two running averages."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient. 0 = no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the forward pass; auto is bf16 where the hardware has it. Weights stay as in master_weights."""
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit keeps AdamW's running averages in 8 bits (needs the extra: pip install graft-multimodal[quantize]);
    muon takes Muon for the weights of linear layers, at the same learning rates."""
    master_weights: Literal["fp32", "bf16"] = "fp32"
    """How trained weights are kept, and AdamW's averages if not in 8 bits. bf16 is rounded stochastically; it needs the
    same extra and precision bf16."""
    compile: bool = False
    """Compile the layers (needs a C++ compiler on a CPU): the first steps take a minute or more, the others less time.
    Sums are taken in another order, so that losses differ in their last digits, also from one start to the next."""
    offload_activations: bool = False
    """Keep what the backward pass needs in the CPU's memory, to save a GPU's."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto is a GPU if there is one."""
    seed: int = 0
    """Fixes the order of samples and everything random."""
    workers: int = 0
    """Processes that prepare data. 0 = the training process itself."""
    save_every: int = 500
    """Steps between checkpoints. 0 = at the end only."""
    keep: int = 2
    """Newest checkpoints that are kept."""
    log_every: int = 20
    """Steps between printed lines when the output is not a terminal (the log file has every step)."""
    eval_every: int = 0
    """Steps between evaluations. 0 = at the end only."""
    keep_best: str = ""
    """The run ends with the weights of the evaluation at which this number was highest, such as cider_d; with a minus
    before it lowest, such as -wer. "" = those of the last step."""
    max_minutes: float | None = None
    """Wall-clock budget of the whole run: the learning rate follows the clock where that is ahead of the steps, and the
    run ends in time with an ordinary checkpoint. Such a run depends on the machine's speed, so it is not exactly
    repeatable."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""
    wandb: str | None = None
    """Weights & Biases project to log to (needs the extra: pip install graft-multimodal[wandb])."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "keep", "log_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("workers", "save_every", "eval_every", "weight_decay", "clip_norm", "warmup", "seed"):
            value = getattr(self, name)
            self._require(name, value >= 0 and math.isfinite(value), "0 or more")
        self._require("accumulate", self.batch_size % self.accumulate == 0, f"a divisor of {self.batch_size}")
        self._require("min_lr_ratio", 0 <= self.min_lr_ratio <= 1, "0 to 1")
        self._require("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1")
        self._require("max_minutes", self.max_minutes is None or self.max_minutes > 0, "more than 0")
        rates = self.learning_rates.values()
        self._require("learning_rates", all(rate >= 0 and math.isfinite(rate) for rate in rates), "rates of 0 or more")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: expected {expected}")

    def warmup_steps(self) -> int:
        """Length of the warm-up in steps."""
        return round(self.warmup * self.steps) if self.warmup < 1 else round(self.warmup)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stage beside the main one, with what differs; 0 steps leave it out."""

    steps: int = 0
    learning_rates: dict[str, float] = field(default_factory=dict)
    """Peak rates of the parts that are not to have the stage's usual ones."""
    batch_size: int = 0
    """0 = as in the main stage."""
    keep_best: str = ""
    """Not the main stage's: other numbers may be evaluated here."""
    max_minutes: float | None = None

    def settings(self, main: TrainConfig, *, rates: dict[str, float]) -> TrainConfig:
        """The stage's settings: the main stage's but for what differs; `rates` are the usual ones."""
        return replace(
            main,
            steps=self.steps,
            learning_rates=rates | self.learning_rates,
            batch_size=self.batch_size or main.batch_size,
            keep_best=self.keep_best,
            max_minutes=self.max_minutes,
        )
