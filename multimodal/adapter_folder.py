"""An adapter as a thing of its own: a folder with a configuration, the adapter's tensors only, and a model card.

`adapter_config.json` names the decoder and the hash of its weights; loading on another decoder is refused. Weights are
safetensors: no code is ever run from such a folder.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from multimodal.errors import UserError
from multimodal.pretrained import load_decoder
from multimodal.train.logging import git_revision
from multimodal.train.precision import resolve_device

if TYPE_CHECKING:
    from multimodal.model import MultimodalModel

FORMAT = 1
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter.safetensors", "README.md"


def _owned_tensors(model: "MultimodalModel") -> dict[str, torch.Tensor]:
    """The adapter's tensors: everything of the modalities, and the placeholders' embeddings."""
    tensors = {"extra_embedding.weight": model.decoder.extra_embedding.weight}
    tensors |= {f"modalities.{name}": tensor for name, tensor in model.modalities.state_dict().items()}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def save_adapter(
    model: "MultimodalModel", folder: Path, *, recipe: Mapping[str, Any], metrics: Mapping[str, Any]
) -> None:
    """Write the folder whole or not at all; an older one of that name is replaced.

    Raises:
        UserError: the folder holds something else, or cannot be written (a full disk); an older adapter is then intact.
    """
    if folder.exists() and not (folder / CONFIG).is_file() and any(folder.iterdir()):
        raise UserError(f"{folder}: holds other files; expected a new folder or an adapter to replace")
    lm = model.decoder.lm
    config = {
        "format": FORMAT,
        "decoder": model.decoder_name,
        "decoder_sha256": model.decoder.sha256(),
        "decoder_dtype": str(lm.dtype).removeprefix("torch."),
        "modalities": {kind: m.config.to_dict() for kind, m in model.modalities.items()},  # type: ignore[union-attr]
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "git": git_revision()},
        "recipe": dict(recipe),
        "metrics": dict(metrics),
    }
    new, old = _beside(folder, "new"), _beside(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        save_file(_owned_tensors(model), new / WEIGHTS)
        (new / CONFIG).write_text(json.dumps(config, indent=2, default=str) + "\n")
        (new / CARD).write_text(_card(config))
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


def _beside(folder: Path, ending: str) -> Path:
    """Where the new folder is made, and where the older one waits while the two are exchanged."""
    return folder.parent / f"{folder.name}.{ending}"


def _card(config: Mapping[str, Any]) -> str:
    """A model card of what is known: nothing but facts and measured numbers."""
    kinds = ", ".join(config["modalities"])
    lines = [
        f"# {kinds} adapter",
        "",
        f"For the frozen decoder `{config['decoder']}` (sha256 `{config['decoder_sha256'][:16]}...`), made with Graft.",
        "",
        "| metric | value |",
        "| --- | --- |",
        *(f"| {name} | {value:.4g} |" for name, value in config["metrics"].items() if isinstance(value, float | int)),
        "",
        "```python",
        "from multimodal.model import MultimodalModel",
        'model = MultimodalModel.from_pretrained("this-folder")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: no {CONFIG}; expected an adapter folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / CONFIG}: not JSON ({error}); expected what save_pretrained wrote") from None
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise UserError(f"{folder / CONFIG}: format {found}; this version of Graft reads {FORMAT}")
    missing = sorted({"decoder", "decoder_sha256", "decoder_dtype", "modalities"} - config.keys())
    if missing:
        raise UserError(f"{folder / CONFIG}: no {missing[0]!r} in it; expected what save_pretrained wrote")
    return config


def load_adapter(folder: Path, *, decoder: str | None, force_decoder: bool, device: str) -> "MultimodalModel":
    """The model of an adapter folder, in eval mode.

    Args:
        decoder: load this one instead of the one that the folder names.
        force_decoder: accept a decoder whose weights differ from those that the adapter was trained on.

    Raises:
        UserError: not an adapter folder, a different decoder, or tensors that do not fit (up to ten are named).
    """
    from multimodal.model import MultimodalModel

    if not folder.exists() and _beside(folder, "old").exists():  # a kill in the middle of save_adapter's exchange
        folder = _beside(folder, "old")
    config = _read_config(folder)
    name = decoder or config["decoder"]
    frozen, tokenizer = load_decoder(name, dtype=getattr(torch, config["decoder_dtype"]), device=resolve_device(device))
    if not force_decoder and frozen.sha256() != config["decoder_sha256"]:
        raise UserError(
            f"{folder}: was trained on decoder {config['decoder']} (sha256 {config['decoder_sha256'][:12]}), but "
            f"{name} has {frozen.sha256()[:12]}; expected the same weights (--force-decoder loads it all the same)"
        )
    model = MultimodalModel(frozen, tokenizer, decoder_name=name)
    for kind, modality in config["modalities"].items():
        model.add(kind, modality)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({error}); expected the adapter's tensors") from None
    _fill(model, tensors, folder / WEIGHTS)
    return model.eval()


@torch.no_grad()
def _fill(model: "MultimodalModel", tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Copy the tensors into the model, if they are exactly the ones that it has."""
    targets = {"extra_embedding.weight": model.decoder.extra_embedding.weight}
    targets |= {f"modalities.{name}": tensor for name, tensor in model.modalities.state_dict(keep_vars=True).items()}
    wrong = [f"missing {name}" for name in targets.keys() - tensors.keys()]
    wrong += [f"unknown {name}" for name in tensors.keys() - targets.keys()]
    wrong += [
        f"{name} {list(tensors[name].shape)} for {list(target.shape)}"
        for name, target in targets.items()
        if name in tensors and tensors[name].shape != target.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise UserError(f"{file}: does not fit the configuration: {'; '.join(sorted(wrong)[:10])}{more}")
    for name, target in targets.items():
        target.copy_(tensors[name])
