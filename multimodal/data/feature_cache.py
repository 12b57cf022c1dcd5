"""Tensors on disk by key: what a frozen encoder made of a medium need be computed once only.

One file an entry, written under a temporary name and renamed when it is whole, so that neither a second process nor a
kill at any moment leaves half an entry under a name that is read. What cannot be read counts as absent.
"""

import hashlib
import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from multimodal.errors import UserError

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
STALE_SECONDS = 3600
"""A draft that is older was left behind by a kill."""


def cache_key(*parts: object) -> str:
    """One key of all that an entry depends on."""
    return hashlib.sha256("\x00".join(map(str, parts)).encode()).hexdigest()


def file_key(base: str, source: object, *parts: object) -> str:
    """The key of a file as it is now, of `base` and of `parts`: all that an entry depends on. Empty: it is no file."""
    if not isinstance(source, str | Path) or not Path(source).is_file():
        return ""
    path = Path(source).resolve()
    stat = path.stat()
    return cache_key(base, path, stat.st_size, stat.st_mtime_ns, *parts)


class FeatureCache:
    """A folder of entries of bounded size.

    When it is full, entries that no run has read or written since this object was made go first, the oldest before the
    others. Then it takes nothing more: an entry of this run is worth as much as the new one. Every process counts what
    it writes and looks at the disk again after each twentieth of the bound, so that several together can exceed it by
    a twentieth each.

    Args:
        folder: made if it is not there.
        max_gb: bound, in 10^9 bytes.

    Raises:
        UserError: the folder cannot be made, or the bound is not positive.
    """

    def __init__(self, folder: Path, *, max_gb: float) -> None:
        if not max_gb > 0:
            raise UserError(f"feature cache of {max_gb} GB; expected more than 0")
        self.folder, self.max_bytes = folder, round(max_gb * 1e9)
        self.hits = self.misses = 0
        self.full = False
        self._began = time.time() - 0.1  # file systems keep coarser times than the clock
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"feature cache {folder}: {error.strerror or error}; expected a writable folder") from None
        for draft in folder.glob("*/*.tmp"):
            if (found := _stat(draft)) and found.st_mtime < self._began - STALE_SECONDS:
                draft.unlink(missing_ok=True)
        self._written = 0
        self._room = self.max_bytes - self.size()

    def size(self) -> int:
        """Bytes of all entries on the disk."""
        return sum(found.st_size for file in self.folder.glob(f"*/*{SUFFIX}") if (found := _stat(file)))

    def load(self, key: str) -> dict[str, Tensor] | None:
        """The entry, or None if there is none."""
        file = self._file(key)
        try:
            tensors = load_file(file)
        except (OSError, SafetensorError) as error:
            if isinstance(error, SafetensorError):  # damaged
                with suppress(OSError):
                    file.unlink()
            self.misses += 1
            return None
        with suppress(OSError):  # of another user: it only looks older than it is
            os.utime(file)
        self.hits += 1
        return tensors

    def store(self, key: str, tensors: dict[str, Tensor]) -> bool:
        """Keep an entry; False where it has no room. A full disk counts as a full cache."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.full or not self._make_room(size):
            return False
        file = self._file(key)
        draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            file.parent.mkdir(exist_ok=True)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, draft)
            os.replace(draft, file)
        except (OSError, SafetensorError) as error:
            self._fill_up(f"cannot be written ({error})")
            return False
        finally:
            draft.unlink(missing_ok=True)
        self._written += size
        self._room -= size
        return True

    def _file(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def _make_room(self, size: int) -> bool:
        if self._written > self.max_bytes // 20:
            self._written, self._room = 0, self.max_bytes - self.size()
        if size <= self._room:
            return True
        self._drop_old(size)
        if size > self._room:
            self._fill_up("is full")
        return size <= self._room

    def _drop_old(self, size: int) -> None:
        """Entries that nobody has used of late make room for so many bytes, and for a tenth of the bound."""
        found = [
            (stat.st_mtime, stat.st_size, file) for file in self.folder.glob(f"*/*{SUFFIX}") if (stat := _stat(file))
        ]
        self._room = self.max_bytes - sum(length for _, length, _ in found)
        for used, length, file in sorted(found, key=lambda entry: entry[0]):
            if used >= self._began or self._room >= max(size, self.max_bytes // 10):
                break
            file.unlink(missing_ok=True)
            self._room += length

    def _fill_up(self, why: str) -> None:
        self.full = True
        log.warning("feature cache %s %s: further features are computed anew each time", self.folder, why)


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:  # another process took it away
        return None
