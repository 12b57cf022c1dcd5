"""A stage beside the main one differs in what it says, and in nothing else."""

from dataclasses import replace

from multimodal.train.config import StageConfig
from tests.tiny_models import train_config


def test_a_stage_is_the_main_one_but_for_what_differs() -> None:
    main = train_config(learning_rates={"adapter": 1.0, "encoder": 0.5}, seed=7, max_minutes=3.0)
    stage = StageConfig(steps=5, learning_rates={"encoder": 0.25})
    expected = replace(main, steps=5, learning_rates={"adapter": 2.0, "encoder": 0.25}, max_minutes=None)
    assert stage.settings(main, rates={"adapter": 2.0, "encoder": 2.0}) == expected
    assert StageConfig(steps=5, batch_size=9).settings(main, rates={}).batch_size == 9
