"""An adapter as a thing of its own: a folder with a configuration, the adapter's tensors only, and a model card.

`adapter_config.json` names the decoder and the hash of its weights; loading on another decoder is refused. The same
goes for an encoder of the hub that was not trained. Weights are safetensors: no code is ever run from such a folder.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from multimodal.errors import UserError
from multimodal.hub_encoder import HubEncoder
from multimodal.pretrained import load_decoder
from multimodal.train.logging import git_revision
from multimodal.train.precision import resolve_device

if TYPE_CHECKING:
    from multimodal.model import MultimodalModel

FORMAT = 1
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter.safetensors", "README.md"


def _hub_encoders(model: "MultimodalModel") -> dict[str, HubEncoder]:
    """Encoders of the hub, by the place of their weights in the model."""
    found = model.modalities.named_modules()
    return {f"modalities.{name}.model": module for name, module in found if isinstance(module, HubEncoder)}


def _owned_tensors(model: "MultimodalModel", borrowed: Iterable[str]) -> dict[str, torch.Tensor]:
    """The adapter's tensors: those of the modalities but for what is borrowed, and the placeholders' embeddings."""
    tensors = {"extra_embedding.weight": model.decoder.extra_embedding.weight}
    tensors |= {f"modalities.{name}": tensor for name, tensor in model.modalities.state_dict(keep_vars=True).items()}
    places = tuple(f"{place}." for place in borrowed)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(places)}


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
    origins = {place: encoder.borrowed for place, encoder in _hub_encoders(model).items()}
    borrowed = {place: asdict(origin) for place, origin in origins.items() if origin is not None}
    owned = {name: t.detach().cpu().contiguous() for name, t in _owned_tensors(model, borrowed).items()}
    config = {
        "format": FORMAT,
        "decoder": model.decoder_name,
        "decoder_sha256": model.decoder.sha256(),
        "decoder_dtype": str(lm.dtype).removeprefix("torch."),
        "modalities": {kind: m.config.to_dict() for kind, m in model.modalities.items()},  # type: ignore[union-attr]
        "borrowed": borrowed,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "git": git_revision()},
        "recipe": dict(recipe),
        "metrics": dict(metrics),
    }
    new, old = _beside(folder, "new"), _beside(folder, "old")
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        save_file(owned, new / WEIGHTS)
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
        *(f"Its encoder `{origin['name']}` is not in this folder." for origin in config["borrowed"].values()),
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
        UserError: not an adapter folder, a different decoder or encoder, or tensors that do not fit (up to ten are
            named).
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
    borrowed = config.get("borrowed", {})
    _check_borrowed(model, borrowed, folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({error}); expected the adapter's tensors") from None
    _fill(_owned_tensors(model, borrowed), tensors, folder / WEIGHTS)
    return model.eval()


def _check_borrowed(model: "MultimodalModel", borrowed: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError unless the names give the weights that the adapter was trained on."""
    encoders = _hub_encoders(model)
    for place, origin in borrowed.items():
        found, expected = encoders[place].origin if place in encoders else None, origin["sha256"]
        if found is None or found.sha256 != expected:
            now = "incomplete weights" if found is None else found.sha256[:12]
            raise UserError(
                f"{folder}: was trained on encoder {origin['name']} (sha256 {expected[:12]}), which now has {now}; "
                "expected the same weights"
            )


@torch.no_grad()
def _fill(targets: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor], file: Path) -> None:
    """Copy the tensors into their targets, if they are exactly those that are asked for."""
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
