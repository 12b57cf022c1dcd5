"""Peak memory of a step above what was there before it (the weights and the inputs), in a process of its own.

A process that has done anything else keeps freed memory and would hide what a step needs. So each side is built and run
in a fresh one, forked from a server that has the libraries and nothing else.
"""

import ctypes
import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from multimodal.errors import UserError
from scripts.benchmarks.case import Settings
from scripts.benchmarks.sizes import TINY

STEPS = 2
"""Steps whose peak counts: the optimizer's state is made in the first."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Peak:
    """MB (10^6 bytes) in memory before a step (on a GPU the weights and inputs alone), and its peak above that."""

    before: float
    above: float


def peak_in_fresh_process(suite: str, case: str, side: str, settings: Settings) -> Peak:
    """What a step of "ours" or "theirs" of a case takes.

    Raises:
        UserError: the process was killed, as it is where memory is short.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scripts.benchmarks.suites"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_peak_of_side, suite, case, side, settings).result()
        except BrokenProcessPool:
            raise UserError(f"{case}, {side}: the process was killed; expected enough memory for it") from None


def _peak_of_side(suite: str, case: str, side: str, settings: Settings) -> Peak:
    from scripts.benchmarks.suites import SUITES

    if not settings.on_gpu:  # libraries load their kernels when first used: some 20 MB that are nobody's activations
        tiny = next(one for one in SUITES[suite](replace(settings, size=TINY)).cases if one.memory).build()
        for one in (tiny.ours, tiny.theirs):
            one.step()
        del tiny
    (found,) = (one for one in SUITES[suite](settings).cases if one.name == case)
    pair = found.build()
    kept = getattr(pair, side)
    del pair, found
    gc.collect()
    return peak_above(kept.step, settings.torch_device)


def peak_above(step: Callable[[], object], device: torch.device) -> Peak:
    """What `step`, done `STEPS` times, takes at its peak above what is in memory now."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        return Peak(before / 1e6, (torch.cuda.max_memory_allocated() - before) / 1e6)
    before = _fresh_mark()
    for _ in range(STEPS):
        step()
    return Peak(before / 1e6, (_high_water() - before) / 1e6)


def _fresh_mark() -> float:
    """Give freed memory back, set the process's high-water mark to what it holds now, and return that in bytes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
    return _high_water()


def _high_water() -> float:
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # macOS: bytes, and never lowered
