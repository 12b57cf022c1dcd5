"""Which names are of the hub."""

import re
from pathlib import Path

_PART = r"\w[\w.-]*"


def is_hub_name(name: str, *, owner: bool = True) -> bool:
    """Whether a name is one of the hub, OWNER/NAME, and not of something on this disk.

    Args:
        owner: whether the hub wants one; of data sets, the oldest have none.
    """
    pattern = f"{_PART}/{_PART}" if owner else f"({_PART}/)?{_PART}"
    return re.fullmatch(pattern, name) is not None and not Path(name).exists()
