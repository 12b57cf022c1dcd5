"""Encoders of `transformers` by name, read at several depths, and what an adapter folder may leave out because the name
gives it.

Weights that nobody trained are not copied into every adapter: like the decoder's they are named, and known again by
their hash.

Legend: D width of the model, C = D * (1 + taps).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from multimodal.errors import UserError, reported_as, up_to_ten
from multimodal.hashing import weights_sha256
from multimodal.layers import Encoder
from multimodal.pretrained import quiet_transformers
from multimodal.safe_weights import SAFE, expect_safetensors


@dataclass(frozen=True)
class Origin:
    """Where weights come from: a hub name or folder, and the hash of what it gave."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Loaded:
    """A model as it was loaded.

    Attributes:
        model: of which an encoder may be a part.
        called: what messages call it.
        name: hub name or folder.
        new: names of weights that were made up because the files have none that fit, with the reason.
        unknown: names in the files that the model has not.
    """

    model: PreTrainedModel
    called: str
    name: str
    new: dict[str, str]
    unknown: list[str]


class HubEncoder(Encoder, ABC):
    """An encoder around a `model` of `transformers`.

    Those of each modality give the same face to it: `forward_intermediates` with their own inputs, and `layers`.

    Args:
        model: with a config of one `hidden_size` and `num_hidden_layers`.
        taps: layers whose outputs join the final features, rising numbers from 1.
        tap_norm: a LayerNorm on each of them (spec A2.6.3).
    """

    origin: Origin | None = None
    """None: no name gives all the weights of `model`."""

    def __init__(self, model: PreTrainedModel, *, taps: Sequence[int] = (), tap_norm: bool = True) -> None:
        super().__init__()
        self.model = model
        self.tap_layers = tuple(taps)
        width: int = model.config.hidden_size
        self.tap_norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-5) if tap_norm else nn.Identity() for _ in taps)

    @property
    def feature_dim(self) -> int:
        """C: width of the features."""
        return self.model.config.hidden_size * (1 + len(self.tap_layers))

    def join(self, final: Tensor, taps: Sequence[Tensor]) -> Tensor:
        """Features [..., C]: the final states [..., D], then the normed taps."""
        return torch.cat([final, *(norm(tap) for norm, tap in zip(self.tap_norms, taps, strict=True))], dim=-1)

    def run(self, layers: Sequence[int], *args: Any, **kwargs: Any) -> tuple[Tensor, list[Tensor]]:
        """Call `model`: its last hidden states, and the raw outputs of some of its layers, counted from 1.

        Outputs are taken by hooks for this call alone: nothing else is kept, and nothing stays on the model.
        """
        kept: dict[int, Tensor] = {}

        def keep(number: int) -> Callable[[nn.Module, Any, Any], None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                kept[number] = output[0] if isinstance(output, tuple) else output

            return hook

        stack = layer_stack(self.model) if layers else ()
        with ExitStack() as hooks:
            for number in layers:
                hooks.enter_context(stack[number - 1].register_forward_hook(keep(number)))
            final: Tensor = self.model(*args, **kwargs).last_hidden_state
        return final, [kept[number] for number in layers]

    @property
    def borrowed(self) -> Origin | None:
        """The origin, if the weights of `model` are those that it gave; None where they were trained."""
        unchanged = self.origin is not None and weights_sha256(self.model) == self.origin.sha256
        return self.origin if unchanged else None

    @abstractmethod
    def probe(self) -> Tensor:
        """Features of something small, whatever it is."""

    def accept(self, loaded: Loaded) -> None:
        """Take the origin of the model that this encoder was made of, if its weights fit its config.

        A checkpoint may lack what the features do not need (a pooler), and have what the encoder has not (a head).

        Raises:
            UserError: weights are missing, misshapen, or of layers that the config does not know (up to ten are named).
        """
        modules = dict(loaded.model.named_modules())
        stack = next(name for name, module in modules.items() if module is layer_stack(self.model))
        wrong = [f"unknown {name}" for name in loaded.unknown if name.startswith(f"{stack}.")]
        needed = self._needed() if loaded.new else set()
        for name, reason in loaded.new.items():
            module, _, last = name.rpartition(".")
            if id(getattr(modules.get(module), last, None)) in needed:
                wrong.append(reason)
        if wrong:
            raise UserError(f"{loaded.called}: weights do not fit its config.json: {up_to_ten(sorted(wrong))}")
        self.origin = None if loaded.new else Origin(loaded.name, weights_sha256(self.model))

    def _needed(self) -> set[int]:
        """The weights that the features depend on: parameters that get a gradient, and statistics."""
        learnt = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.probe().sum(), learnt, allow_unused=True)
        reached = {id(p) for p, gradient in zip(learnt, gradients, strict=True) if gradient is not None}
        return reached | {id(buffer) for buffer in self.model.buffers() if buffer.is_floating_point()}

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        # The newer of the two names warns under the older one, and transformers 5.17 knows the older one alone.
        older = self.model.gradient_checkpointing_enable
        getattr(self.model, "activation_checkpointing_enable", older)({"use_reentrant": False})


def layer_stack(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers of a model: the one list as long as it is deep, all of a kind.

    Raises:
        UserError: there is none.
    """
    depth = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth and len({type(layer) for layer in module}) == 1:
            return module
    raise UserError(f"encoder: found no stack of {depth} layers in {type(model).__name__}")


def read_model(name: str, *, what: str) -> Loaded:
    """A model of a folder or the hub in fp32, and what of it was not in the files.

    Args:
        what: what it is to be, for messages.

    Raises:
        UserError: no such model, or one that would run code.
    """
    expect_safetensors(Path(name), what=what, reader="AutoModel")
    with (
        reported_as(f"{what} {name}: cannot be loaded", expected="expected a model of transformers"),
        quiet_transformers(),
    ):
        model, found = AutoModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **SAFE
        )
    new = {key: f"missing {key}" for key in found["missing_keys"]}
    new |= {key: f"{key} {list(there)} for {list(own)}" for key, there, own in found["mismatched_keys"]}
    return Loaded(model, f"{what} {name}", name, new, sorted(found["unexpected_keys"]))
