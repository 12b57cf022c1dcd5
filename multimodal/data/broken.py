"""What to do with media that cannot be read: skip and count them, naming the first, or end the run."""

import logging
from typing import Literal

from multimodal.errors import UserError

log = logging.getLogger(__name__)

OnError = Literal["skip", "fail"]
WARN_BROKEN = 5
"""So many broken media are named one by one; the rest are only counted."""


class BrokenMedia(set[str]):
    """Names of the media that could not be read, each once.

    Args:
        what: what they are called in the plural, as in "pictures".
        on_error: "skip" names the first few in a warning and counts all, "fail" raises.
    """

    def __init__(self, what: str, *, on_error: OnError) -> None:
        super().__init__()
        self.what, self.on_error = what, on_error

    def note(self, name: str, error: UserError) -> None:
        """Count one, at its first occurrence.

        Raises:
            UserError: the given error, with "fail".
        """
        if self.on_error == "fail":
            raise error
        if name not in self:
            self.add(name)
            if len(self) <= WARN_BROKEN:
                log.warning("skipped: %s", error)
            if len(self) == WARN_BROKEN:
                log.warning("more broken %s are counted but not named", self.what)
