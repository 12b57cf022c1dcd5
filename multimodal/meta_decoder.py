"""A decoder without data, on the meta device: built from a configuration, and run for what it costs.

Legend: B batch, T tokens, D decoder width, N positions with a loss.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from multimodal.decoder import FrozenDecoder
from multimodal.errors import reported_as
from multimodal.loss import rows_loss
from multimodal.memory import AdapterMemory, CrossMemory
from multimodal.meta_layers import layers_once
from multimodal.meta_run import META, PieceCost, Pieces
from multimodal.pretrained import find_decoder
from multimodal.seam import KEYWORD


def read_config(name: str) -> PretrainedConfig:
    """Configuration of a decoder: "builtin", a folder, or a name of the hub; its weights are not read.

    Raises:
        UserError: there is none.
    """
    path = find_decoder(name)
    expected = "expected one of a causal decoder of transformers"
    with reported_as(f"decoder {name}: no configuration can be read", expected=expected):
        return AutoConfig.from_pretrained(path, trust_remote_code=False)


def meta_decoder(config: PretrainedConfig, *, dtype: torch.dtype = torch.bfloat16) -> FrozenDecoder:
    """A frozen decoder of that configuration on the meta device.

    Raises:
        UserError: it is not of a causal decoder.
    """
    problem = f"decoder: cannot be built from a configuration of {config.model_type}"
    with META:
        with reported_as(problem, expected="expected a causal decoder of transformers"):
            lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return FrozenDecoder(lm.to(dtype))


@contextmanager
def decoder_pieces(
    decoder: FrozenDecoder, dtype: torch.dtype | None, *, grad: bool, layers: Iterable[nn.Module] = ()
) -> Iterator[Pieces]:
    """`Pieces` that end in this decoder. Of its layers, and of others given, those that are alike are run once; `grad`:
    to be run backwards too.
    """
    alike = [*decoder.seam.layers, *layers]
    with torch.set_grad_enabled(grad), Pieces(dtype) as pieces, layers_once(alike, pieces.kernels):
        yield pieces


def embeddings(decoder: FrozenDecoder, batch: int, tokens: int) -> Tensor:
    """Input embeddings [B, T, D]."""
    weight = decoder.lm.get_input_embeddings().weight
    return torch.empty(batch, tokens, decoder.dim, dtype=weight.dtype, device=META)


def hidden(decoder: FrozenDecoder, embeds_BTD: Tensor, memory: CrossMemory | None = None) -> Tensor:
    """Final hidden states [B, T, D], as `FrozenDecoder.hidden` makes them, whose looks at the data have none here."""
    length = embeds_BTD.shape[1]
    # A finished mask: from no mask, transformers would look in the positions for packed sequences.
    mask_11TT = torch.empty(1, 1, length, length, dtype=torch.bool, device=META)
    inputs: dict[str, Any] = {"inputs_embeds": embeds_BTD, "attention_mask": mask_11TT, "use_cache": False}
    if memory is not None:
        inputs[KEYWORD] = memory
    if not (decoder.checkpointing and torch.is_grad_enabled()):
        return decoder.seam.decoder(**inputs).last_hidden_state
    with decoder.seam.recomputing(0 if embeds_BTD.requires_grad else decoder.first_adapted):
        return decoder.seam.decoder(**inputs).last_hidden_state


def run_memory(pieces: Pieces, name: str, make: Callable[[], AdapterMemory]) -> AdapterMemory:
    """The next piece makes an adapter's keys and values."""
    memory: AdapterMemory | None = None

    def made() -> list[Tensor]:
        nonlocal memory
        memory = make()
        return [*memory.keys.values(), *memory.values.values()]

    leaves = pieces.run(name, made)
    assert memory is not None
    half = len(leaves) // 2
    keys, values = (dict(zip(memory.keys, some, strict=True)) for some in (leaves[:half], leaves[half:]))
    return replace(memory, keys=keys, values=values)


def run_decoder(
    pieces: Pieces, decoder: FrozenDecoder, embeds_BTD: Tensor, memory: CrossMemory | None = None, *, losses: int = 0
) -> None:
    """The last pieces: the decoder with what is attached to it, and the loss of the last `losses` positions."""
    (hidden_BTD,) = pieces.run("decoder", lambda: [hidden(decoder, embeds_BTD, memory)])
    if losses:
        targets_N = torch.empty(len(hidden_BTD) * losses, dtype=torch.long, device=META)
        pieces.run("loss", lambda: [rows_loss(hidden_BTD[:, -losses:].flatten(0, 1), targets_N, decoder.head)])


def cross_layers_cost(layers: nn.ModuleDict, decoder: FrozenDecoder, memory: AdapterMemory, tokens: int) -> PieceCost:
    """Operations of an adapter's cross-attention layers in the decoder, from one of them: they are all alike."""
    name, block = next(iter(layers.items()))
    k_BGSK, v_BGSK = (x[int(name)].detach() for x in (memory.keys, memory.values))
    training = torch.is_grad_enabled() and any(p.requires_grad for p in block.parameters())
    batch, slots = len(k_BGSK), k_BGSK.shape[2]
    mask_BTS = torch.empty(batch, tokens, slots, dtype=torch.bool, device=META)
    hidden_BTD, k_BGSK, v_BGSK = (
        x.requires_grad_(training) for x in (embeddings(decoder, batch, tokens), k_BGSK, v_BGSK)
    )
    with Pieces() as pieces:
        pieces.run("", lambda: [block(hidden_BTD, k_BGSK, v_BGSK, mask_BTS, mask_BTS[..., 0])])
        cost = pieces.finish().pieces[0]
    return PieceCost("cross-attention layers", len(layers) * cost.forward, len(layers) * cost.backward)
