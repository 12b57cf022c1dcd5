"""Bytes of a step, and what fits."""

import pytest

from multimodal.errors import UserError
from multimodal.meta_run import PieceCost, RunCost
from multimodal.stage_cost import USABLE, Settings, StageCost, Workload, every_settings

GB = 10**9
STAGE = StageCost(
    "stage",
    {"adapter": 2 * GB},
    3 * GB,
    {"bf16": 16 * GB, "int8": 9 * GB},
    RunCost((PieceCost("a", 6, 12), PieceCost("b", 2, 0)), 9 * GB, 10 * GB),
    RunCost((PieceCost("a", 6, 18), PieceCost("b", 2, 0)), 1 * GB, 2 * GB),
    batch=2,
)


def test_a_step_is_the_sum_of_its_bytes() -> None:
    memory = STAGE.memory(Settings())
    assert (memory.decoder, memory.parts, memory.gradients) == (16 * GB, 12 * GB, 8 * GB)
    assert memory.optimizer == 16 * GB and memory.activations == 10 * GB
    assert memory.total == 62 * GB
    assert STAGE.memory(Settings(optimizer="8-bit")).optimizer == pytest.approx(4 * GB, rel=0.02)
    assert STAGE.memory(Settings(checkpointing=True)).total == 54 * GB
    half = STAGE.memory(Settings(weights="bf16"))  # of the parts 2 of 3 are trained
    assert (half.parts, half.gradients, half.optimizer) == (8 * GB, 4 * GB, 8 * GB)
    both = STAGE.memory(Settings(weights="bf16", optimizer="8-bit"))
    assert both.optimizer == STAGE.memory(Settings(optimizer="8-bit")).optimizer and both.parts == 8 * GB
    assert STAGE.flops == 10 and STAGE.flops_checkpointed == 13


def test_the_first_settings_that_fit_are_taken() -> None:
    assert STAGE.settings_for(62 / USABLE + 0.1) == Settings()
    assert STAGE.settings_for(55 / USABLE) == Settings(checkpointing=True)
    assert STAGE.settings_for(STAGE.least / GB / USABLE + 0.1) == Settings(
        checkpointing=True, optimizer="8-bit", decoder="int8", weights="bf16"
    )
    assert STAGE.settings_for(STAGE.least / GB / USABLE - 0.1) is None


def test_in_use_there_is_only_the_decoder_to_choose() -> None:
    assert every_settings(training=False) == [Settings(), Settings(decoder="int8")]
    assert len(set(every_settings(training=True))) == 16 and every_settings(training=True)[0] == Settings()


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"text_tokens": 0}, {"tiles": -1}, {"seconds": 0.0}])
def test_impossible_workloads_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"^--"):
        Workload(**wrong)  # type: ignore[arg-type]
