"""What a stage of training (or use) costs: trained parameters, operations, bytes; and what of it fits on a card.

Weights that are trained are fp32 or, rounded stochastically, bf16, and so are their gradients, as the training engine
keeps them; encoders and adapters that stay frozen are fp32. The decoder is bf16, or int8 by linear layer (one bf16
scale for each output row; embeddings and the output head stay bf16).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

from torch import nn

from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError
from multimodal.meta_run import RunCost

DecoderDtype = Literal["bf16", "int8"]
OptimizerStates = Literal["full", "8-bit"]
MasterWeights = Literal["fp32", "bf16"]

CARDS = (24, 48, 80, 141)
"""Memory of usual cards, in 10^9 bytes."""
USABLE = 0.9
"""Share of a card that is planned with: the rest is for CUDA itself, kernels' workspaces and fragmentation."""
WEIGHT_BYTES: dict[MasterWeights, int] = {"fp32": 4, "bf16": 2}
EIGHT_BIT_BYTES = 2 * (1 + 4 / 256)
"""Of AdamW's two averages, for each trained parameter, with an fp32 scale for each block of 256."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What goes through the parts at once."""

    batch: int = 1
    """Samples."""
    tiles: int = 0
    """Tiles of a picture or frame; 0 = as many as the system allows."""
    text_tokens: int = 192
    """Of a sample, all with a loss. The paper's average (spec A7)."""
    frames: int = 0
    """Of a clip; 0 = as many as the system samples."""
    seconds: float = 30.0
    """Of a recording; the paper has up to 60."""

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("tiles", 0), ("text_tokens", 1), ("frames", 0)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} is {getattr(self, name)}: expected {least} or more")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"--seconds is {self.seconds}: expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be traded for memory, from what costs least to what costs most."""

    checkpointing: bool = False
    optimizer: OptimizerStates = "full"
    """AdamW's averages: of the type of the weights, or 8-bit."""
    decoder: DecoderDtype = "bf16"
    weights: MasterWeights = "fp32"
    """Of what is trained."""

    def __str__(self) -> str:
        words = {
            "checkpointing": self.checkpointing,
            "8-bit optimizer": self.optimizer == "8-bit",
            "int8 decoder": self.decoder == "int8",
            "bf16 weights": self.weights == "bf16",
        }
        return ", ".join(word for word, holds in words.items() if holds) or "as it is"


def every_settings(*, training: bool) -> list[Settings]:
    """All combinations, the cheapest sacrifice first; in use there is only the decoder to choose."""
    if not training:
        return [Settings(), Settings(decoder="int8")]
    choices = product(get_args(MasterWeights), get_args(DecoderDtype), get_args(OptimizerStates), (False, True))
    return [Settings(checkpointing=c, optimizer=o, decoder=d, weights=w) for w, d, o, c in choices]


@dataclass(frozen=True)
class Memory:
    """Bytes at the worst moment of a step."""

    decoder: int
    parts: int
    """Weights of encoders, adapters and heads."""
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.decoder + self.parts + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class StageCost:
    """A stage at some workload.

    Attributes:
        name: of the stage.
        trained: parameters of each part that is trained; none = use, not training.
        parts: parameters of all parts that are loaded beside the decoder.
        decoder: bytes of the decoder in either dtype; 0 in both where there is none.
        run: what a batch costs; operations of frozen parts without those for weight gradients.
        checkpointed: the same where activations are recomputed.
        batch: samples of the batch.
    """

    name: str
    trained: dict[str, int]
    parts: int
    decoder: dict[DecoderDtype, int]
    run: RunCost
    checkpointed: RunCost
    batch: int

    @property
    def flops(self) -> float:
        """Operations of a sample, nothing recomputed."""
        return self.run.flops / self.batch

    @property
    def flops_checkpointed(self) -> float:
        """Operations of a sample where activations are recomputed."""
        return self.checkpointed.flops / self.batch

    def memory(self, settings: Settings) -> Memory:
        """Bytes of a step with these settings; with bf16 weights at most, as autocast then makes no copies of them."""
        trained, each = sum(self.trained.values()), WEIGHT_BYTES[settings.weights]
        return Memory(
            decoder=self.decoder[settings.decoder],
            parts=4 * (self.parts - trained) + each * trained,
            gradients=each * trained,
            optimizer=round((2 * each if settings.optimizer == "full" else EIGHT_BIT_BYTES) * trained),
            activations=(self.checkpointed if settings.checkpointing else self.run).peak,
        )

    def settings_for(self, card: float) -> Settings | None:
        """The least sacrifice with which a step fits on a card of `card` * 10^9 bytes; None: nothing helps."""
        for settings in every_settings(training=bool(self.trained)):
            if self.memory(settings).total <= USABLE * card * 1e9:
                return settings
        return None

    @property
    def least(self) -> int:
        """Bytes with every sacrifice."""
        return self.memory(every_settings(training=bool(self.trained))[-1]).total


def parameters(modules: Sequence[nn.Module]) -> int:
    """Parameters of modules; what they share counts once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def decoder_bytes(decoder: FrozenDecoder) -> dict[DecoderDtype, int]:
    """Weights of a decoder in bf16 and in int8, there with the one that is expanded at a time."""
    linears = [m for m in decoder.seam.layers.modules() if isinstance(m, nn.Linear)]
    whole = 2 * (parameters([decoder.lm]) + parameters([decoder.extra_embedding]))
    expanded = 2 * max((m.weight.numel() for m in linears), default=0)
    saved = sum(m.weight.numel() - 2 * m.out_features for m in linears)
    return {"bf16": whole, "int8": whole - saved + expanded}
