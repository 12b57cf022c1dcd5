"""Broken samples of a data set: skipped and counted, or the end of the run."""

import logging
from collections.abc import Callable
from typing import Literal, TypeVar

from multimodal.errors import UserError

log = logging.getLogger(__name__)

WARN_BROKEN = 5
"""So many broken samples are named one by one; the rest are only counted."""

OnError = Literal["skip", "fail"]
T = TypeVar("T")


class BrokenSamples:
    """Reads samples that may be broken.

    Args:
        on_error: "skip" gives None for a broken sample, names the first few in a warning and counts all in `ids`;
            "fail" raises.
        what: what the samples are, in the plural.
    """

    def __init__(self, *, on_error: OnError = "skip", what: str = "samples") -> None:
        self.on_error, self.what = on_error, what
        self.ids: set[str] = set()

    def read(self, read: Callable[[], T], *, id: str) -> T | None:
        """What `read` returns; None where it raises a `UserError` that is to be skipped.

        Raises:
            UserError: a broken sample, with `on_error="fail"`.
        """
        try:
            return read()
        except UserError as error:
            if self.on_error == "fail":
                raise
            if id not in self.ids:
                self.ids.add(id)
                if len(self.ids) <= WARN_BROKEN:
                    log.warning("skipped: %s", error)
                if len(self.ids) == WARN_BROKEN:
                    log.warning("more broken %s are counted but not named", self.what)
            return None
