"""Models in the local cache of the hub's client, as they lie there once they were downloaded by name."""

import shutil
from pathlib import Path

COMMIT = "0" * 40


def publish(folder: Path, name: str, cache: Path) -> None:
    """Put a folder there as the only version of a model."""
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    shutil.copytree(folder, place / "snapshots" / COMMIT)
