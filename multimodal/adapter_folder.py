"""An adapter as a thing of its own: a folder with a configuration, the adapter's tensors only, and a model card.

`adapter_config.json` names the decoder and the hash of its weights; loading on another decoder is refused. The same
goes for an encoder of the hub that was not trained. Weights are safetensors: no code is ever run from such a folder.
Several folders for one decoder may be loaded into one model.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from multimodal.errors import UserError
from multimodal.hub_encoder import HubEncoder
from multimodal.pretrained import load_decoder
from multimodal.quantization import quantization_of
from multimodal.train.logging import git_revision
from multimodal.train.precision import resolve_device

if TYPE_CHECKING:
    from multimodal.model import MultimodalModel

FORMAT = 1
CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter.safetensors", "README.md"
TABLE = "extra_embedding.weight"
"""All modalities' placeholders and marks; `MultimodalModel.token_rows` says which rows are whose."""


@dataclass(frozen=True)
class _Saved:
    """What an adapter folder holds.

    modalities: settings by kind. borrowed: name and hash of the hub encoders that are not in it, by the place of their
    weights. tensors: all that is in it.
    """

    folder: Path
    modalities: Mapping[str, Any]
    borrowed: Mapping[str, Mapping[str, str]]
    tensors: Mapping[str, torch.Tensor]


def _hub_encoders(model: "MultimodalModel") -> dict[str, HubEncoder]:
    """Encoders of the hub, by the place of their weights in the model."""
    found = model.modalities.named_modules()
    return {f"modalities.{name}.model": module for name, module in found if isinstance(module, HubEncoder)}


def _tensors_of(
    model: "MultimodalModel", kinds: Iterable[str], borrowed: Iterable[str] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of some modalities by their names in a folder, but for what is borrowed, and the embeddings of the
    extra tokens."""
    tensors: dict[str, torch.Tensor] = {TABLE: model.decoder.extra_embedding.weight}
    for kind in kinds:
        own = model.modalities[kind].state_dict(keep_vars=True)
        tensors |= {f"modalities.{kind}.{name}": tensor for name, tensor in own.items()}
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
    config = {
        "format": FORMAT,
        "decoder": model.decoder_name,
        "decoder_sha256": model.decoder.sha256(),
        "decoder_dtype": str(lm.dtype).removeprefix("torch."),
        "decoder_quantization": quantization_of(lm),
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
        tensors = _tensors_of(model, model.modalities, borrowed)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, new / WEIGHTS)
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
    decoder = _in_words(config["decoder"], config["decoder_quantization"])
    lines = [
        f"# {kinds} adapter",
        "",
        f"For the frozen decoder `{decoder}` (sha256 `{config['decoder_sha256'][:16]}...`), made with Graft.",
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


def _in_words(decoder: str, quantization: str) -> str:
    """A decoder's name, with how it was quantised."""
    return decoder if quantization == "none" else f"{decoder} in {quantization}"


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


def load_model(folder: Path, *, decoder: str | None, force_decoder: bool, device: str) -> "MultimodalModel":
    """The model of an adapter folder, in eval mode.

    Args:
        decoder: load this one instead of the one that the folder names.
        force_decoder: accept a decoder whose weights differ from those that the adapter was trained on.

    Raises:
        UserError: not an adapter folder, a different decoder or encoder, or tensors that do not fit (up to ten are
            named).
    """
    from multimodal.model import MultimodalModel

    config = _read_config(_whole(folder))
    name = decoder or config["decoder"]
    frozen, tokenizer = load_decoder(
        name,
        dtype=getattr(torch, config["decoder_dtype"]),
        device=resolve_device(device),
        quantization=config.get("decoder_quantization", "none"),
    )
    model = MultimodalModel(frozen, tokenizer, decoder_name=name)
    add_adapter(model, folder, force_decoder=force_decoder)
    return model.eval()


def add_adapter(model: "MultimodalModel", folder: Path, *, force_decoder: bool) -> None:
    """Add the modalities of an adapter folder to a model. What it says with its others stays the same to the bit.

    A video adapter's folder brings the image parts that it builds on; a model that has the same ones shares them. If
    anything is refused, the model is as it was.

    Raises:
        UserError: as `load_model`; or the model has a modality of the folder already, or image parts other than those
            that the folder's video parts build on.
    """
    folder = _whole(folder)
    config = _read_config(folder)
    if not force_decoder and (own := model.decoder.sha256()) != config["decoder_sha256"]:
        trained_on = _in_words(config["decoder"], config.get("decoder_quantization", "none"))
        present = _in_words(model.decoder_name, quantization_of(model.decoder.lm))
        raise UserError(
            f"{folder}: was trained on decoder {trained_on} (sha256 {config['decoder_sha256'][:12]}), but "
            f"{present} has {own[:12]}; expected the same weights (--force-decoder loads it all the same)"
        )
    try:
        tensors = load_file(folder / WEIGHTS)
    except (FileNotFoundError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read ({error}); expected the adapter's tensors") from None
    saved = _Saved(folder, config["modalities"], config.get("borrowed", {}), tensors)
    new = _new_kinds(model, saved)
    with ExitStack() as undo:
        for kind in new:
            model.add(kind, saved.modalities[kind])
            undo.callback(model.unload_adapter, kind)
            model.modalities[kind].train(model.training)
        _check_borrowed(model, saved)
        _check_fit(_tensors_of(model, saved.modalities, saved.borrowed), tensors, folder / WEIGHTS)
        _fill(model, new, saved)
        undo.pop_all()


def _whole(folder: Path) -> Path:
    """The folder, or the one that waits in its place after a kill in the middle of `save_adapter`'s exchange."""
    old = _beside(folder, "old")
    return old if old.exists() and not folder.exists() else folder


def _check_borrowed(model: "MultimodalModel", saved: _Saved) -> None:
    """Raises UserError unless the names give the weights that the adapter was trained on."""
    encoders = _hub_encoders(model)
    for place, origin in saved.borrowed.items():
        found, expected = encoders[place].origin if place in encoders else None, origin["sha256"]
        if found is None or found.sha256 != expected:
            now = "incomplete weights" if found is None else found.sha256[:12]
            raise UserError(
                f"{saved.folder}: was trained on encoder {origin['name']} (sha256 {expected[:12]}), which now has "
                f"{now}; expected the same weights"
            )


def _new_kinds(model: "MultimodalModel", saved: _Saved) -> list[str]:
    """The modalities of a folder that are to be added; those that the model has must be what new ones build on."""
    from multimodal.model import modality_class

    new = [kind for kind in saved.modalities if kind not in model.modalities]
    for kind in (kind for kind in saved.modalities if kind not in new):
        above = next((other for other in new if kind in getattr(modality_class(other), "builds_on", ())), None)
        if above is None:
            raise UserError(
                f"{saved.folder}: an adapter for {kind}, which the model has already; expected "
                f"unload_adapter({kind!r}) first"
            )
        if not _is_same(model, kind, saved):
            raise UserError(
                f"{saved.folder}: its {above} parts build on {kind} parts that differ from the model's; expected the "
                f"same settings and weights, or unload_adapter({kind!r}) first"
            )
    return new


def _is_same(model: "MultimodalModel", kind: str, saved: _Saved) -> bool:
    """Whether a modality of the model has these settings and weights, its own extra tokens among them."""
    config: Any = model.modalities[kind].config
    if type(config).from_dict(saved.modalities[kind]).to_dict() != config.to_dict():
        return False
    encoders = _hub_encoders(model)
    for place in (place for place in saved.borrowed if place.startswith(f"modalities.{kind}.")):
        origin = encoders[place].borrowed if place in encoders else None
        if origin is None or origin.sha256 != saved.borrowed[place]["sha256"]:
            return False
    rows = model.token_rows(kind)
    for name, target in _tensors_of(model, [kind], saved.borrowed).items():
        own, found = target.detach().cpu(), saved.tensors.get(name)
        if found is None or (found.shape, found.dtype) != (own.shape, own.dtype):
            return False
        if name == TABLE:
            own, found = own[rows], found[rows]
        if not torch.equal(own, found):
            return False
    return True


def _check_fit(targets: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], file: Path) -> None:
    """Refuse tensors other than exactly those that the modalities have."""
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


@torch.no_grad()
def _fill(model: "MultimodalModel", kinds: Collection[str], saved: _Saved) -> None:
    """Copy the tensors of some modalities into the model; of the extra tokens their own rows alone."""
    for name, target in _tensors_of(model, kinds, saved.borrowed).items():
        if name != TABLE:
            target.copy_(saved.tensors[name])
    for row in (row for kind in kinds for row in model.token_rows(kind)):
        model.decoder.extra_embedding.weight[row] = saved.tensors[TABLE][row]
