"""What the loop asks of a task."""

from typing import Any, Protocol

from torch import Tensor, nn


class Task(Protocol):
    """A model with its loss. If it is an `nn.Module` too (as it should be), the loop moves it to the device, sets train
    and eval mode, and spares its embeddings the weight decay. An optional `log_values() -> dict[str, float]` is logged.

    `parts` may hold what is frozen as well: the learning rates decide. Trained state must be in parameters of the parts
    (running statistics in buffers would not be in a checkpoint).
    """

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Parameters with their names, by part ("adapter", "encoder", "gates" ...); each part has its learning rate."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        """The loss summed over a batch (scalar) and the weight to divide by (usually the number of target tokens)."""
        ...
