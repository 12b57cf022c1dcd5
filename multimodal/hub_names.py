"""Which names are of the hub."""

import re
from pathlib import Path


def is_hub_name(name: str) -> bool:
    """Whether a name is one of the hub, OWNER/NAME, and not of something on this disk."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None and not Path(name).exists()
