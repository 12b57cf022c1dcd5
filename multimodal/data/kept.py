"""What was costly to make, such as decoded media, kept in memory for the next epochs, up to a bound."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Kept(Generic[V]):
    """Values by key. When it is full it keeps what it has: of samples that come round in epochs, those are met again in
    each.

    Args:
        megabytes: how much may be kept; each worker process of a loader has its own.
        size: of a value, in bytes.
    """

    def __init__(self, *, megabytes: float, size: Callable[[V], int]) -> None:
        self._free, self._size = megabytes * 1e6, size
        self._values: dict[Hashable, V] = {}

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of the key, made if it is not there. Not to be changed in place.

        Raises:
            as `make`; then nothing is kept.
        """
        if key in self._values:
            return self._values[key]
        value = make()
        if (size := self._size(value)) <= self._free:
            self._values[key] = value
            self._free -= size
        return value
