"""Finding and opening what a user named: regular files, or a `UserError` that says what stands there instead; and
writing a file so that it is never half there.
"""

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer

from safetensors import SafetensorError

from multimodal.errors import UserError


def open_file(path: Path, *, expected: str) -> BinaryIO:
    """Open a file to read its bytes; `expected` ends the message, as in "expected a picture (JPEG or PNG)".

    Raises:
        UserError: missing, a folder, a device or a pipe, or not to be opened.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path}: a folder; {expected}")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file; {expected}")
        return path.open("rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {expected}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; {expected}") from error


def open_container(file: BinaryIO) -> "InputContainer":
    """A video or a sound file through FFmpeg, which may open nothing else: a playlist could name any file or address.

    Raises:
        av.error.FFmpegError: not a container that FFmpeg knows, or a broken one.
    """
    import av

    return av.open(file, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace")


def find_files(paths: Sequence[str], suffixes: Collection[str], *, what: str) -> list[Path]:
    """Files named by paths, folders (all files below with one of `suffixes`) and globs, in order, none twice.

    Raises:
        UserError: no path, one that matches nothing, or a folder without such a file; `what` is what files hold.
    """
    if not paths:
        raise UserError(f"no {what} given; expected {what} files, folders or globs")
    found: dict[Path, None] = {}
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        elif path.exists():
            files = [path]
        else:
            files = sorted(p for p in map(Path, glob(str(path), recursive=True)) if p.is_file())
        if not files:
            raise UserError(f"{text}: no {what} found; expected a {what} file, a folder with {what}s, or a glob")
        found.update(dict.fromkeys(files))
    return list(found)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft to write to, which becomes the folder at the end; if anything fails, nothing remains.

    Raises:
        UserError: the folder holds something already, or safetensors cannot write (a full disk).
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; expected a new folder")
    folder = folder.absolute()  # "." has no name
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        draft.mkdir(parents=True)
        yield draft
        os.replace(draft, folder)
    except SafetensorError as error:
        raise UserError(f"cannot write {folder}: {error}; expected a writable disk with room") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A draft to write to, which takes the place of the file at the end; if anything fails, an older one stays. The
    folder for it is made.

    Raises:
        UserError: safetensors cannot write (a full disk).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        os.replace(draft, path)
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {error}; expected a writable disk with room") from error
    finally:
        draft.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file, and the folder for it: all of it or, if anything fails, nothing."""
    with new_file(path) as draft:
        draft.write_text(text, encoding="utf-8")
