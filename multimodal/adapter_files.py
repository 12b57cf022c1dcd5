"""The files of an adapter folder: a configuration, tensors and a model card. They are read with every check that needs
no model, and written whole or not at all.
"""

import json
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file

from multimodal.adapter_card import model_card
from multimodal.errors import UserError
from multimodal.safe_weights import open_safetensors
from multimodal.train.logging import git_revision

FORMAT = 1
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter.safetensors", "README.md"
_NEEDED = {"decoder": str, "decoder_sha256": str, "decoder_dtype": str, "modalities": dict}
_OPTIONAL = {"decoder_quantization": str, "decoder_sizes": dict, "borrowed": dict, "recipe": dict, "metrics": dict}


def versions() -> dict[str, str | None]:
    """What a folder is written by; None for what is not known."""
    try:
        graft = version("graft-multimodal")
    except PackageNotFoundError:  # run from a source tree that was never installed
        graft = None
    return {
        "graft": graft,
        "git": git_revision(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


def read_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json`.

    Raises:
        UserError: not an adapter folder, one of a newer version, or settings of the wrong kind.
    """
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: no {CONFIG}; expected an adapter folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not JSON ({error}); expected what save_pretrained wrote") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        newer = "; expected a newer Graft" if isinstance(found, int) and found > FORMAT else ""
        raise UserError(f"{file}: format {found}; this version of Graft reads {FORMAT}{newer}")
    missing = sorted(_NEEDED.keys() - config.keys())
    if missing:
        raise UserError(f"{file}: no {missing[0]!r} in it; expected what save_pretrained wrote")
    for name, kind in (_NEEDED | _OPTIONAL).items():
        if name in config and not isinstance(config[name], kind):
            raise UserError(f"{file}: {name} is {config[name]!r:.60}; expected a {kind.__name__}")
    if not isinstance(getattr(torch, config["decoder_dtype"], None), torch.dtype):
        raise UserError(f"{file}: decoder_dtype is {config['decoder_dtype']!r:.60}; expected one of torch's")
    for place, origin in config.get("borrowed", {}).items():
        if not (isinstance(origin, dict) and isinstance(origin.get("sha256"), str) and "name" in origin):
            raise UserError(f"{file}: borrowed {place} is {origin!r:.60}; expected its name and sha256")
    return config


def open_tensors(folder: Path) -> Any:
    """The tensors of an adapter folder, as `open_safetensors` gives them.

    Raises:
        UserError: as `open_safetensors`.
    """
    return open_safetensors(folder / WEIGHTS, expected=f"expected the adapter's tensors in {WEIGHTS}")


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of an adapter folder, on the CPU.

    Raises:
        UserError: as `open_tensors`.
    """
    with open_tensors(folder) as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def write_adapter(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    hub_name: str = "",
    license: str = "",
) -> None:
    """Write the folder whole or not at all; an older adapter of that name is replaced.

    Args:
        config: all of `adapter_config.json` but its format; what JSON does not know is written as text.
        hub_name: under which the folder is published, for the card.
        license: of the adapter, for the card; empty: left to whoever publishes it.

    Raises:
        UserError: the folder holds something else, or cannot be written (a full disk); an older adapter is then intact.
    """
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds other files; expected a new folder or an adapter to replace")
    folder = folder.absolute()  # "." has no name
    text = json.dumps({"format": FORMAT} | dict(config), indent=2, default=str)
    new, old = _beside(folder, "new"), _beside(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, new / WEIGHTS)
        (new / CONFIG).write_text(text + "\n")
        (new / CARD).write_text(model_card(json.loads(text), hub_name=hub_name, license=license))
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(new, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write adapter {folder}: {reason}; expected a writable disk with room") from error
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def whole(folder: Path) -> Path:
    """The folder, or the one that waits in its place after a kill in the middle of `write_adapter`'s exchange."""
    old = _beside(folder, "old")
    return old if old.exists() and not folder.exists() else folder


def _beside(folder: Path, ending: str) -> Path:
    """Where the new folder is made, and where the older one waits while the two are exchanged."""
    return folder.parent / f"{folder.name}.{ending}"
