"""An adapter as a thing of its own: a folder with a configuration, the adapter's tensors only, and a model card.

`adapter_config.json` names the decoder and the hash of its weights; loading on another decoder is refused. The same
goes for an encoder of the hub that was not trained. Weights are safetensors: no code is ever run from such a folder.
Several folders for one decoder may be loaded into one model.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from multimodal.adapter_card import decoder_in_words
from multimodal.adapter_files import CONFIG, WEIGHTS, read_config, read_tensors, versions, write_adapter
from multimodal.decoder_sizes import decoder_sizes
from multimodal.errors import UserError, reported_as
from multimodal.hub_encoder import HubEncoder
from multimodal.pretrained import load_decoder
from multimodal.quantization import quantization_of
from multimodal.train.precision import resolve_device
from multimodal.weight_folder import expect_same_tensors

if TYPE_CHECKING:
    from multimodal.model import MultimodalModel

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

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> "_Saved":
        """With the tensors that go with an `adapter_config.json`.

        Raises:
            UserError: as `read_tensors`.
        """
        return cls(folder, config["modalities"], config.get("borrowed", {}), read_tensors(folder))


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
    model: "MultimodalModel",
    folder: Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    hub_name: str = "",
    license: str = "",
) -> None:
    """Write the folder whole or not at all; an older one of that name is replaced.

    Args:
        recipe, metrics: how the adapter was trained, and what was measured of it. Neither: those of the folder that the
            model was loaded from, if nothing has changed since.
        hub_name, license: as in `write_adapter`.

    Raises:
        UserError: as `write_adapter`.
    """
    origins = {place: encoder.borrowed for place, encoder in _hub_encoders(model).items()}
    borrowed = {place: asdict(origin) for place, origin in origins.items() if origin is not None}
    if recipe is None and metrics is None:
        recipe, metrics = _still_true(model)
    config = {
        "decoder": model.decoder_name,
        "decoder_sha256": model.decoder.sha256(),
        "decoder_dtype": str(model.decoder.lm.dtype).removeprefix("torch."),
        "decoder_quantization": quantization_of(model.decoder.lm),
        "decoder_sizes": asdict(decoder_sizes(model.decoder)),
        "modalities": {kind: m.config.to_dict() for kind, m in model.modalities.items()},  # type: ignore[union-attr]
        "borrowed": borrowed,
        "versions": versions(),
        "recipe": dict(recipe or {}),
        "metrics": dict(metrics or {}),
    }
    tensors = _tensors_of(model, model.modalities, borrowed)
    write_adapter(folder, config, tensors, hub_name=hub_name, license=license)


def _still_true(model: "MultimodalModel") -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Recipe and metrics of the folder that a model was loaded from; empty unless it still is what they speak of."""
    if model.loaded_from is None:
        return {}, {}
    try:
        config = read_config(model.loaded_from)
        saved = _Saved.read(model.loaded_from, config)
    except UserError:
        return {}, {}
    same = config["decoder_sha256"] == model.decoder.sha256() and saved.modalities.keys() == model.modalities.keys()
    if not (same and all(_is_same(model, kind, saved) for kind in saved.modalities)):
        return {}, {}
    return config.get("recipe", {}), config.get("metrics", {})


def load_model(folder: Path, *, decoder: str | None, force_decoder: bool, device: str) -> "MultimodalModel":
    """The model of an adapter folder, in eval mode.

    Args:
        folder: as `multimodal.adapter_hub.find_adapter` gives it.
        decoder: load this one instead of the one that the folder names.
        force_decoder: accept a decoder whose weights differ from those that the adapter was trained on.

    Raises:
        UserError: not an adapter folder, a different decoder or encoder, or tensors that do not fit (up to ten are
            named).
    """
    from multimodal.model import MultimodalModel

    config = read_config(folder)
    name = decoder or config["decoder"]
    frozen, tokenizer = load_decoder(
        name,
        dtype=getattr(torch, config["decoder_dtype"]),
        device=resolve_device(device),
        quantization=config.get("decoder_quantization", "none"),
    )
    model = MultimodalModel(frozen, tokenizer, decoder_name=name)
    _add_adapter(model, folder, config, force_decoder=force_decoder)
    model.loaded_from = folder.absolute()
    return model.eval()


def add_adapter(model: "MultimodalModel", folder: Path, *, force_decoder: bool) -> None:
    """Add the modalities of an adapter folder to a model. What it says with its others stays the same to the bit.

    A video adapter's folder brings the image parts that it builds on; a model that has the same ones shares them. If
    anything is refused, the model is as it was.

    Args:
        folder: as `multimodal.adapter_hub.find_adapter` gives it.

    Raises:
        UserError: as `load_model`; or the model has a modality of the folder already, or image parts other than those
            that the folder's video parts build on.
    """
    _add_adapter(model, folder, read_config(folder), force_decoder=force_decoder)


def _add_adapter(model: "MultimodalModel", folder: Path, config: Mapping[str, Any], *, force_decoder: bool) -> None:
    """`add_adapter`, its `adapter_config.json` read."""
    _check_decoder(model, folder, config, force=force_decoder)
    saved = _Saved.read(folder, config)
    new = _new_kinds(model, saved)
    with ExitStack() as undo:
        for kind in new:
            _add(model, kind, saved)
            undo.callback(model.unload_adapter, kind)
            model.modalities[kind].train(model.training)
        _check_borrowed(model, saved)
        expect_same_tensors(
            _shapes(saved.tensors),
            _shapes(_tensors_of(model, saved.modalities, saved.borrowed)),
            problem=f"{folder / WEIGHTS}: does not fit the configuration",
        )
        _fill(model, new, saved)
        undo.pop_all()


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _check_decoder(model: "MultimodalModel", folder: Path, config: Mapping[str, Any], *, force: bool) -> None:
    """Raises UserError unless the decoder is the one that the adapter was trained on or, by force, one of its sizes."""
    own = model.decoder.sha256()
    if own == config["decoder_sha256"]:
        return
    # Not only where shapes would tell: as many weights in more heads, or another epsilon, compute something else.
    sizes = asdict(decoder_sizes(model.decoder))
    needed = config.get("decoder_sizes", sizes)
    wrong = [f"{name} {size} for {needed.get(name)}" for name, size in sizes.items() if needed.get(name) != size]
    trained_on = decoder_in_words(config["decoder"], config.get("decoder_quantization", "none"))
    present = decoder_in_words(model.decoder_name, quantization_of(model.decoder.lm))
    found = (
        f"{folder}: was trained on decoder {trained_on} (sha256 {config['decoder_sha256'][:12]}), but {present} has "
        f"{own[:12]}"
    )
    if wrong:
        raise UserError(f"{found} and other sizes ({', '.join(wrong)}); expected a decoder of the same sizes")
    if not force:
        raise UserError(f"{found}; expected the same weights (--force-decoder loads it all the same)")


def _add(model: "MultimodalModel", kind: str, saved: _Saved) -> None:
    """A modality with the settings of a folder, whatever stands there."""
    problem = f"{saved.folder / CONFIG}: settings of {kind} that cannot be built"
    with reported_as(problem, expected="expected what save_pretrained wrote"):
        model.add(kind, saved.modalities[kind])


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


@torch.no_grad()
def _fill(model: "MultimodalModel", kinds: Collection[str], saved: _Saved) -> None:
    """Copy the tensors of some modalities into the model; of the extra tokens their own rows alone."""
    for name, target in _tensors_of(model, kinds, saved.borrowed).items():
        if name != TABLE:
            target.copy_(saved.tensors[name])
    for row in (row for kind in kinds for row in model.token_rows(kind)):
        model.decoder.extra_embedding.weight[row] = saved.tensors[TABLE][row]
