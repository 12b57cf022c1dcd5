"""The training engine: a raw PyTorch loop with exact resume (see `loop.train`)."""

from multimodal.train.config import TrainConfig
from multimodal.train.loop import TrainResult, train
from multimodal.train.rng import seed_everything
from multimodal.train.task import Task

__all__ = ["Task", "TrainConfig", "TrainResult", "seed_everything", "train"]
