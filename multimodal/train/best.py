"""The weights of the best evaluation of a run, for it to end with.

Small data sets are learnt by heart: the loss falls to the end while the score on held-out samples has long been falling
too. What is best is read from the folder `best` alone, so that no kill can part it from its weights.
"""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from multimodal.errors import UserError
from multimodal.train.checkpoint import Progress, restore_weights, steps_in, weights, write_step
from multimodal.train.low_memory import Parts


class Best:
    """Keeps the weights at the highest value of one number.

    Args:
        number: its name among the numbers of an evaluation; with a minus before it the lowest value is best.
        run_dir: the run's folder.
        resume: go on from what the run kept before; else that is removed.
    """

    def __init__(self, number: str, run_dir: Path, *, resume: bool) -> None:
        self.name, self.sign = number.removeprefix("-"), -1 if number.startswith("-") else 1
        self.folder = run_dir / "best"
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        kept = self._kept()
        self.value = -math.inf if kept is None else self._value(kept.metrics)

    def offer(self, progress: Progress, parts: Parts) -> None:
        """Keep the weights if the evaluation that `progress` holds is the best so far.

        Raises:
            UserError: there is no such number, or the disk is full.
        """
        value = self._value(progress.metrics)
        if value > self.value:
            self.value = value
            state = {"progress": asdict(progress)}
            write_step(self.folder, progress.step, tensors=weights(parts), state=state, keep=1)

    def restore(self, parts: Parts) -> dict[str, float]:
        """Put the kept weights back; the numbers of their evaluation, with its step as `best_step`. Nothing if none are
        kept.

        Raises:
            UserError: they are unreadable or of another model.
        """
        kept = self._kept()
        if kept is None:
            return {}
        folder = steps_in(self.folder)[0]
        try:
            tensors = load_file(folder / "tensors.safetensors")
        except (OSError, SafetensorError) as error:
            raise UserError(f"{folder}: unreadable ({error}): expected the weights of an evaluation") from None
        restore_weights(folder, tensors, parts)
        return kept.metrics | {"best_step": kept.step}

    def _kept(self) -> Progress | None:
        """How far the run was when it kept weights."""
        folders = steps_in(self.folder)
        if not folders:
            return None
        try:
            return Progress(**json.loads((folders[0] / "state.json").read_text())["progress"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folders[0]}: unreadable ({error}): expected the weights of an evaluation") from None

    def _value(self, metrics: dict[str, float]) -> float:
        if self.name not in metrics:
            found = ", ".join(sorted(metrics)) or "none"
            raise UserError(
                f"--train.keep-best {self.name}: the evaluation has no such number; expected one of {found}"
            )
        return self.sign * metrics[self.name]
