"""Nothing from a model folder is ever run: weights are safetensors, and code that lies beside them is left alone."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from multimodal.errors import UserError

SAFE = {"use_safetensors": True, "trust_remote_code": False}
"""For `from_pretrained` of models. Said outright: transformers would else read pickles, and ask whether to run code."""

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_LONGEST_HEADER = 100_000_000  # of safetensors; the file begins with its length


def only_pickle(folder: Path) -> Path | None:
    """The first file of pickled weights in a folder that holds no safetensors; None if it holds some, or neither."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    pickles = [file for file in files if is_pickle(file)]
    sound = any(file.suffix == ".safetensors" and file not in pickles for file in files)
    return None if sound or not pickles else pickles[0]


def expect_safetensors(folder: Path, *, what: str, reader: str) -> None:
    """Raises UserError if a folder holds pickled weights alone.

    Args:
        what: what is to be read, for the message.
        reader: the class of transformers that could convert them.
    """
    if (pickle := only_pickle(folder)) is not None:
        raise UserError(
            f"{what} {folder}: its weights are a pickle ({pickle.name}), which may run code; expected safetensors (if "
            f"you trust it: {reader}.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW_FOLDER))"
        )


def open_safetensors(file: Path, *, expected: str) -> Any:
    """The tensors of a file, each read when it is asked for: `safe_open` of safetensors, to be used in a `with` or not.

    Args:
        expected: ends the message, as in "expected the adapter's tensors".

    Raises:
        UserError: no such file, a broken one, or a pickle, be it in its place or under a name of its own.
    """
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        if (pickle := file if is_pickle(file) else only_pickle(file.parent)) is not None:
            problem = f"{pickle}: a pickle, which may run code"
        elif not file.exists():
            problem = f"{file}: no such file"
        else:
            problem = f"{file}: cannot be read, perhaps truncated ({error})"
        raise UserError(f"{problem}; {expected}") from error


def is_pickle(file: Path) -> bool:
    """Whether a file is what `torch.save` writes, a zip archive or a bare pickle, by its name or, if that says
    safetensors, by how it begins."""
    if file.suffix != ".safetensors" or not file.is_file():
        return file.suffix in _PICKLES
    with file.open("rb") as opened:
        head = opened.read(8)
    return head.startswith((b"PK\x03\x04", b"\x80")) and int.from_bytes(head, "little") > _LONGEST_HEADER
