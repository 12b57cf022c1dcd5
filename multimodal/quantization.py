"""A frozen decoder in 8 bits: linear layers with int8 or fp8 weights, a scale for each output row, by torchao.

Weight-only: activations keep their precision, and embeddings, norms and the output head stay as they are. What is
promised of a frozen decoder (same logits, same hash) is promised of the quantised one.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from multimodal.errors import UserError

Quantization = Literal["none", "int8", "fp8"]
DecoderQuantization = Annotated[Quantization, tyro.conf.arg(aliases=["--decoder.quantize"])]
"""As a setting of a script that names a decoder."""


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a weight of 8 bits. It keeps nothing for backward: the weight is expanded once more.

    torchao's own graph keeps the expanded weight of every layer, which is all of the unquantised decoder.
    """

    quantization: Quantization

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        return _FrozenProduct.apply(input, self.weight, self.bias)  # type: ignore[return-value]


class _FrozenProduct(torch.autograd.Function):
    """`F.linear` with a gradient of the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight, bias).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grad_outputs
        return grad @ ctx.weight.dequantize(grad.dtype), None, None


def quantize_decoder(lm: Any, quantization: str) -> None:
    """Quantise the linear layers of a causal decoder of transformers in place ("none" leaves it as it is).

    Do it on the CPU, where every machine rounds alike, and move the decoder afterwards.

    Raises:
        UserError: unknown quantization, torchao is not installed, or most of the weights are not in linear layers.
    """
    if quantization not in get_args(Quantization):
        raise UserError(f"decoder quantization {quantization!r}; expected {', '.join(get_args(Quantization))}")
    if quantization == "none":
        return
    config = _torchao_config(quantization)
    from torchao.quantization import quantize_

    decoder = lm.get_decoder()
    linear: list[Any] = [module for module in decoder.modules() if type(module) is nn.Linear]
    embeddings = lm.get_input_embeddings().weight.numel()
    inside = sum(module.weight.numel() for module in linear)
    if 2 * inside < sum(p.numel() for p in decoder.parameters()) - embeddings:
        raise UserError(
            f"--decoder.quantize {quantization}: {type(lm).__name__} has most of its weights outside of linear layers "
            "(experts); expected none for this decoder"
        )
    quantize_(decoder, config, filter_fn=lambda module, _name: type(module) is nn.Linear)
    for module in linear:
        module.__class__ = QuantizedLinear
        module.quantization = quantization


def quantization_of(lm: nn.Module) -> Quantization:
    """How a decoder was quantised."""
    for module in lm.modules():
        if isinstance(module, QuantizedLinear):
            return module.quantization
    return "none"


def expect_quantization(lm: nn.Module, wanted: Quantization, *, adapter: Path) -> None:
    """Refuse what is asked for if the adapter to go on from is for a decoder that was quantised otherwise.

    Raises:
        UserError: it is; "none" asks for nothing.
    """
    found = quantization_of(lm)
    if wanted not in ("none", found):
        raise UserError(
            f"--decoder.quantize {wanted}: {adapter} is for a decoder with quantization {found}; expected the same, "
            "or an adapter trained so"
        )


def _torchao_config(quantization: str) -> Any:
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    except ImportError as error:
        raise UserError(
            f"--decoder.quantize {quantization} needs the package torchao: expected it to be installed "
            "(pip install graft-multimodal[quantize])"
        ) from error
    # Its recommended settings of torch are global, and would change what the rest computes.
    config = Int8WeightOnlyConfig if quantization == "int8" else Float8WeightOnlyConfig
    return config(set_inductor_config=False)
