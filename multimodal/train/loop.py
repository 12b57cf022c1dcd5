"""The training loop: gradient accumulation, exact resume, checkpoints, evaluation, reports.

Gradients are those of the loss summed over all micro-batches, divided by the step's whole weight: 1 x 4 equals 4 x 1
also when captions have unequal lengths.
"""

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from multimodal.config import dump
from multimodal.data.order import Order, SampleSource, SeededOrder, StepData, step_loader
from multimodal.errors import UserError
from multimodal.train.best import Best
from multimodal.train.checkpoint import Progress, list_checkpoints, load_newest, save_checkpoint
from multimodal.train.compiled import compiled_layers, uncompiled
from multimodal.train.config import TrainConfig
from multimodal.train.logging import RunLog, peak_memory_mb, write_description
from multimodal.train.low_memory import weights_in
from multimodal.train.offload import activations_on_cpu
from multimodal.train.optim import (
    build_optimizer,
    freeze_and_select,
    learning_rate_factor,
    scale_and_clip,
    set_learning_rates,
)
from multimodal.train.precision import Precision, autocast, resolve_device, resolve_precision
from multimodal.train.rng import seed_everything, shielded
from multimodal.train.task import Task

Collate = Callable[[list[Any]], Any]
Evaluate = Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class TrainResult:
    """What a run did, over all its resumed pieces. Tokens are the weight of the loss; memory is in MB (10^6 bytes)."""

    steps: int
    seconds: float
    samples_per_second: float
    tokens_per_second: float
    peak_memory_mb: float
    metrics: dict[str, float]
    skipped: int


def train(
    *,
    task: Task,
    dataset: SampleSource,
    collate: Collate,
    config: TrainConfig,
    run_dir: Path,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    config_yaml: str | None = None,
    order: Order | None = None,
    start_counts: bool = False,
) -> TrainResult:
    """Train the parts of `task` whose learning rate is above 0; the trained weights are in `task` afterwards.

    Args:
        task: the model with its loss.
        dataset: samples by index; None stands for a broken one, which is skipped and counted.
        collate: makes a batch of a list of samples; a batch may have `to(device)`.
        config: the settings.
        run_dir: gets `log.jsonl`, `checkpoints/`, `tensorboard/`, `config.yaml`, `run.json`.
        resume: go on from the newest good checkpoint, or start anew if there is none.
        evaluate: called with the step, in eval mode and without gradients, every `eval_every` steps and at the end; its
            numbers go into the log and the result. It cannot disturb the random generators of the run.
        config_yaml: the resolved configuration of the whole script, if it has more than `config`.
        order: which samples make up a step, such as `LengthBuckets`; None: `batch_size` of all in random order.
        start_counts: the weights are of use already: with `keep_best` they are evaluated before the first step, and are
            what the run ends with if nothing after them is better.

    Raises:
        UserError: a used run folder without `resume`, a loss that is not finite, a full disk, an unsuitable setting.
    """
    if not resume and list_checkpoints(run_dir):
        raise UserError(f"{run_dir} already holds checkpoints: expected --resume to go on, or another folder")
    seed_everything(config.seed)
    run = _Run(
        task=task, dataset=dataset, collate=collate, config=config, run_dir=run_dir, evaluate=evaluate, order=order
    )
    if config.keep_best:
        if evaluate is None:
            raise UserError(f"--train.keep-best {config.keep_best}: nothing is evaluated here; expected held-out data")
        run.best = Best(config.keep_best, run_dir, resume=resume)
    with (
        compiled_layers(task, run.device) if config.compile and isinstance(task, nn.Module) else nullcontext(),
        weights_in(torch.bfloat16, config, run.parts),
    ):
        if resume:
            run.restore()
        # Before the log: worker processes are forked here, and the log starts threads.
        with closing(run.data()) as steps, RunLog(run_dir, config, first_step=run.progress.step) as log:
            config_yaml = config_yaml if config_yaml is not None else dump(config)
            write_description(run_dir, config_yaml=config_yaml, precision=run.precision, device=run.device)
            if start_counts and run.best is not None and not run.progress.step:
                run.judge(log)
            run.loop(steps, log)
            run.end()
    return run.result()


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        *,
        task: Task,
        dataset: SampleSource,
        collate: Collate,
        config: TrainConfig,
        run_dir: Path,
        evaluate: Evaluate | None,
        order: Order | None,
    ) -> None:
        self.task, self.dataset, self.collate, self.config = task, dataset, collate, config
        self.run_dir, self.evaluate = run_dir, evaluate
        self.device = resolve_device(config.device)
        self.precision: Precision = resolve_precision(config.precision, self.device)
        self.order: Order = order or SeededOrder(length=len(dataset), batch_size=config.batch_size, seed=config.seed)
        if isinstance(task, nn.Module):
            task.to(self.device)
        self.parts = freeze_and_select(task, config.learning_rates)
        kept = config.master_weights
        if kept == "bf16" and self.precision != kept:
            raise UserError(f"--master-weights is bf16 and arithmetic {self.precision}: expected --precision bf16 too")
        self.optimizer = build_optimizer(task, self.parts, config)
        self.best: Best | None = None
        self.progress = Progress(fingerprint=self.order.fingerprint, optimizer=f"{config.optimizer}, {kept}")

    def restore(self) -> None:
        """Go to the newest good checkpoint. Raises `UserError` if it was begun otherwise."""
        found = load_newest(self.run_dir, parts=self.parts, optimizer=self.optimizer)
        if found is None:
            return
        begun, now = found.fingerprint, self.progress.fingerprint
        for name in now | begun:
            before, after = begun.get(name, 0), now.get(name, 0)
            if before != after:
                raise UserError(f"{self.run_dir} was begun with {name} {before}, now it is {after}: expected the same")
        if found.optimizer != self.progress.optimizer:
            raise UserError(
                f"{self.run_dir} was begun with optimizer and weights {found.optimizer}, now they are "
                f"{self.progress.optimizer}: expected the same"
            )
        self.progress = found

    def data(self) -> Generator[StepData, None, None]:
        """The data of the steps that are left."""
        return step_loader(
            self.dataset,
            self.collate,
            order=self.order,
            first_step=self.progress.step,
            last_step=self.config.steps,
            accumulate=self.config.accumulate,
            workers=self.config.workers,
        )

    def loop(self, steps: Generator[StepData, None, None], log: RunLog) -> None:
        """Train to the end, or until the time is up."""
        self._set_training(True)
        started = time.perf_counter() - self.progress.seconds
        while not self._finished():
            begin = time.perf_counter()
            data = next(steps)
            waited = time.perf_counter() - begin
            factor = learning_rate_factor(self.config, self.progress.step, self.progress.seconds)
            set_learning_rates(self.optimizer, factor)
            loss, norm, weight = self._step(data)
            now = time.perf_counter()
            self._count(data, weight=weight, seconds=now - started)
            log.step(self._record(data, loss=loss, norm=norm, weight=weight, seconds=now - begin, waited=waited))
            if self.evaluate is not None and self._due(self.config.eval_every):
                try:
                    self.judge(log)
                except UserError:
                    self._save()  # with other held-out data, --resume goes on from here
                    raise
            if self._due(self.config.save_every):
                self._save()

    def _step(self, data: StepData) -> tuple[float | None, float, int]:
        """One optimizer step: the mean loss, the norm of the gradient, the weight. If all is skipped, nothing moves."""
        self.optimizer.zero_grad(set_to_none=True)
        total, weight = torch.zeros((), device=self.device), 0
        saved = activations_on_cpu if self.config.offload_activations else nullcontext
        for batch in data.micro_batches:
            batch = batch.to(self.device) if hasattr(batch, "to") else batch
            with autocast(self.device, self.precision), saved():
                loss, count = self.task.loss(batch)
            if count:
                if loss.requires_grad:  # a batch of text alone teaches nothing
                    loss.float().backward()
                total += loss.detach().float()
                weight += int(count)
        if not weight:
            return None, 0.0, 0
        norm = scale_and_clip(self.optimizer, weight=weight, clip_norm=self.config.clip_norm)
        mean_loss, grad_norm = torch.stack([total / weight, norm]).tolist()
        if not (math.isfinite(mean_loss) and math.isfinite(grad_norm)):
            raise UserError(
                f"step {self.progress.step + 1}: loss {mean_loss}, gradient norm {grad_norm}: expected finite numbers "
                f"(try a lower --learning-rates or precision fp32); the last checkpoint is intact"
            )
        self.optimizer.step()
        return mean_loss, grad_norm, weight

    def _count(self, data: StepData, *, weight: int, seconds: float) -> None:
        self.progress.step += 1
        self.progress.samples += data.samples
        self.progress.tokens += weight
        self.progress.skipped += data.skipped
        self.progress.seconds = seconds
        if not self.progress.samples and self.progress.skipped >= len(self.dataset):
            raise UserError(
                f"all {len(self.dataset)} samples of the data set are broken: expected at least one good one"
            )

    def _record(
        self, data: StepData, *, loss: float | None, norm: float, weight: int, seconds: float, waited: float
    ) -> dict[str, Any]:
        log_values = getattr(self.task, "log_values", dict)
        return {
            "step": self.progress.step,
            "epoch": data.epoch,
            "loss": loss,
            "learning_rate": {group["part"]: float(group["lr"]) for group in self.optimizer.param_groups},
            "grad_norm": norm,
            "tokens_per_second": weight / seconds,
            "samples_per_second": data.samples / seconds,
            "memory_mb": peak_memory_mb(self.device),
            "skipped": self.progress.skipped,
            "wait_share": waited / seconds,
            **log_values(),
        }

    def _finished(self) -> bool:
        budget = math.inf if self.config.max_minutes is None else self.config.max_minutes * 60
        return self.progress.step >= self.config.steps or self.progress.seconds >= budget

    def _due(self, every: int) -> bool:
        return self._finished() or (every > 0 and self.progress.step % every == 0)

    def _set_training(self, training: bool) -> None:
        if isinstance(self.task, nn.Module):
            self.task.train(training)

    def judge(self, log: RunLog) -> None:
        """Evaluate the present weights, and keep them if they are the best so far and the best are kept."""
        assert self.evaluate is not None
        self._set_training(False)
        with torch.no_grad(), shielded(), uncompiled(), weights_in(torch.float32, self.config, self.parts):
            self.progress.metrics = self.evaluate(self.progress.step)
        self._set_training(True)
        log.evaluation(self.progress.step, self.progress.metrics)
        if self.best is not None:
            self.best.offer(self.progress, self.parts)

    def end(self) -> None:
        """Leave the task with the weights that the run is to end with."""
        if self.best is not None:
            self.progress.metrics = self.best.restore(self.parts) or self.progress.metrics

    def _save(self) -> None:
        parts, optimizer, progress = self.parts, self.optimizer, self.progress
        save_checkpoint(self.run_dir, parts=parts, optimizer=optimizer, progress=progress, keep=self.config.keep)

    def result(self) -> TrainResult:
        """The numbers of the whole run so far."""
        done, seconds = self.progress, max(self.progress.seconds, 1e-9)
        return TrainResult(
            steps=done.step,
            seconds=done.seconds,
            samples_per_second=done.samples / seconds,
            tokens_per_second=done.tokens / seconds,
            peak_memory_mb=peak_memory_mb(self.device),
            metrics=done.metrics,
            skipped=done.skipped,
        )
