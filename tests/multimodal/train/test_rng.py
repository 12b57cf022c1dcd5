"""Random generators can be captured and shielded."""

import random

import numpy as np
import torch

from multimodal.train.rng import seed_everything, shielded


def draw() -> tuple[float, float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(())), random.gauss(0, 1)


def test_seeding_repeats_the_draws() -> None:
    seed_everything(7)
    first = draw()
    assert draw() != first
    seed_everything(7)
    assert draw() == first


def test_what_is_shielded_leaves_no_trace() -> None:
    seed_everything(7)
    draw()
    expected = draw()
    seed_everything(7)
    draw()
    with shielded():
        draw()
        seed_everything(3)
    assert draw() == expected
