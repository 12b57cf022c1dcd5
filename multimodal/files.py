"""Opening what a user named: a regular file, or a `UserError` that says what stands there instead."""

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from av.container import InputContainer

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
