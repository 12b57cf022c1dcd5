"""The configuration of Llama 3.2 Vision in Graft's terms and back (spec A2.2, A4.3).

What Graft cannot do as a configuration says is refused, not ignored.
"""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, MllamaConfig

from multimodal.errors import UserError, reported_as
from multimodal.quantization import quantization_of
from vision.image_adapter import ImageAdapterConfig
from vision.image_modality import EncoderOptions, ImageConfig
from vision.mllama_names import Sizes
from vision.tile_layout import Numerics
from vision.tiling import candidate_grids

NEW_TOKENS = 8
"""Embedding rows behind the vocabulary, without rows in the output head; the first is that of <|image|>."""
_EPS = 1e-5  # of every LayerNorm of the image encoder, here and there
_SHARED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
"""Settings that the two text configurations have alike."""


def read_config(folder: Path) -> MllamaConfig:
    """`config.json` of a Llama 3.2 Vision folder.

    Raises:
        UserError: there is none, or it is of another model, or contradicts itself, or asks for what Graft cannot do.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder}: no config.json; expected a Llama 3.2 Vision folder of transformers")
    with as_written(file):
        values = json.loads(file.read_text())
        kind = values.get("model_type") if isinstance(values, dict) else None
        if kind != "mllama":
            raise UserError(f"{file}: model_type {kind!r}; expected 'mllama'")
        config = MllamaConfig.from_dict(values)
        _check(config, file)
    return config


def as_written(file: Path) -> AbstractContextManager[None]:
    """Within, what a damaged file of a folder leads to becomes a `UserError`."""
    return reported_as(f"{file}: cannot be used", expected="expected what transformers wrote")


def _check(config: Any, file: Path) -> None:
    text, vision = config.text_config, config.vision_config
    taps, cross = list(vision.intermediate_layers_indices), list(text.cross_attention_layers)
    grids = [list(grid) for grid in vision.supported_aspect_ratios]
    heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
    expected = {
        "image_token_index": (config.image_token_index, text.vocab_size),
        "text_config.hidden_act": (text.hidden_act, "silu"),
        "text_config.hidden_size": (text.hidden_size, text.hidden_size // heads * heads),
        "text_config.num_attention_heads": (heads, heads // kv_heads * kv_heads),
        "vision_config.hidden_act": (vision.hidden_act, "gelu"),
        "vision_config.norm_eps": (vision.norm_eps, _EPS),
        "vision_config.num_channels": (vision.num_channels, 3),
        "vision_config.vision_output_dim": (vision.vision_output_dim, vision.hidden_size * (1 + len(taps))),
        "vision_config.supported_aspect_ratios": (grids, [list(g) for g in candidate_grids(vision.max_num_tiles)]),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise UserError(f"{file}: {name} {found}; expected {wanted}")
    for name in ("image_size", "patch_size"):
        if not isinstance(side := getattr(vision, name), int):
            raise UserError(f"{file}: vision_config.{name} {side}; expected one number")
    if taps != sorted({*taps} & {*range(1, vision.num_hidden_layers)}):
        raise UserError(
            f"{file}: vision_config.intermediate_layers_indices {taps}; expected rising numbers from 1 to "
            f"{vision.num_hidden_layers - 1}"
        )
    follows = {*range(text.num_hidden_layers)} - {*cross}
    if cross != sorted(set(cross)) or not all(layer >= 0 and layer + 1 in follows for layer in cross):
        raise UserError(
            f"{file}: text_config.cross_attention_layers {cross} of {text.num_hidden_layers}; expected rising numbers, "
            "a self-attention layer after each"
        )


def sizes_of(config: Any, numerics: Numerics) -> Sizes:
    """What the mapping of the tensors depends on."""
    text, vision = config.text_config, config.vision_config
    return Sizes(
        vocab_size=text.vocab_size,
        text_layers=text.num_hidden_layers,
        cross=tuple(text.cross_attention_layers),
        plain=vision.num_hidden_layers,
        gated=vision.num_global_layers,
        width=vision.hidden_size,
        taps=len(vision.intermediate_layers_indices),
        max_tiles=vision.max_num_tiles,
        padded=numerics == "reference",
    )


def image_config(config: Any, numerics: Numerics) -> ImageConfig:
    """The image encoder and adapter of a configuration.

    The released indices count the layers from 0 and mean their inputs (spec A2.6.1): the same numbers, counted from 1,
    mean the outputs of the layers before.
    """
    vision, sizes = config.vision_config, sizes_of(config, numerics)
    encoder = EncoderOptions(
        tile_size=vision.image_size,
        patch_size=vision.patch_size,
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        global_layers=vision.num_global_layers,
        heads=vision.attention_heads,
        mlp_ratio=vision.intermediate_size / vision.hidden_size,
        taps=tuple(vision.intermediate_layers_indices),
        max_tiles=vision.max_num_tiles,
        tap_norm=False,
        numerics=numerics,
    )
    placed = tuple(layer for _, layer in sizes.layers("cross"))
    adapter = ImageAdapterConfig(cross_layers=len(placed))
    layers = sizes.text_layers - len(placed)
    if len(placed) > layers or adapter.layers_of(layers) != list(placed):
        adapter = ImageAdapterConfig(cross_layers=len(placed), placed=placed)
    return ImageConfig(encoder=encoder, adapter=adapter)


def llama_config(config: Any) -> LlamaConfig:
    """The decoder of a configuration, without its cross-attention layers."""
    text = config.text_config
    shared = {name: getattr(text, name) for name in _SHARED}
    layers = text.num_hidden_layers - len(text.cross_attention_layers)
    return LlamaConfig(**shared, num_hidden_layers=layers, tie_word_embeddings=False)


def mllama_config(lm: Any, image: ImageConfig, *, dtype: torch.dtype) -> MllamaConfig:
    """The configuration of a decoder with image parts.

    Raises:
        UserError: Llama 3.2 Vision has no such decoder, encoder or adapter.
    """
    text, options, adapter = lm.config, image.encoder, image.adapter
    _check_representable(lm, image)
    placed = adapter.layers_of(text.num_hidden_layers)
    vision = {
        "hidden_size": options.width,
        "num_hidden_layers": options.layers,
        "num_global_layers": options.global_layers,
        "attention_heads": options.heads,
        "intermediate_size": round(options.width * options.mlp_ratio),
        "vision_output_dim": options.width * (1 + len(options.tap_layers)),
        "image_size": options.tile_size,
        "patch_size": options.patch_size,
        "norm_eps": _EPS,
        "max_num_tiles": options.max_tiles,
        "intermediate_layers_indices": list(options.tap_layers),
        "supported_aspect_ratios": [list(grid) for grid in candidate_grids(options.max_tiles)],
    }
    shared = {name: getattr(text, name) for name in _SHARED}
    merged = {
        "num_hidden_layers": text.num_hidden_layers + len(placed),
        "cross_attention_layers": [layer + before for before, layer in enumerate(placed)],
    }
    return MllamaConfig(
        text_config=shared | merged,
        vision_config=vision,
        image_token_index=text.vocab_size,
        architectures=["MllamaForConditionalGeneration"],
        dtype=dtype,
    )


def _check_representable(lm: Any, image: ImageConfig) -> None:
    text, options, adapter = lm.config, image.encoder, image.adapter
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None)
    own_kv_heads = adapter.kv_heads or adapter.heads or kv_heads
    quantization = quantization_of(lm)
    wrong = {
        f"a decoder in {quantization}": quantization != "none",
        "a decoder without a token to begin with": text.bos_token_id is None,
        f"a decoder of the family {text.model_type}": text.model_type != "llama",
        "biases in the decoder": getattr(text, "attention_bias", False) or getattr(text, "mlp_bias", False),
        f"a decoder with heads of {head_dim}": head_dim * text.num_attention_heads != text.hidden_size,
        f"the encoder {options.name} of the hub": options.name,
        "a convolutional stem": options.stem != "patch",
        "norms on taps": options.tap_norm and options.tap_layers,
        "stretched pictures": image.stretch,
        "a tap after the last layer": options.layers in options.tap_layers,
        f"cross-attention with {adapter.heads} heads": adapter.heads not in (0, text.num_attention_heads),
        f"cross-attention with {own_kv_heads} key/value heads": own_kv_heads != kv_heads,
        f"cross-attention with a feed-forward of {adapter.ffn}": adapter.ffn not in (0, text.intermediate_size),
    }
    for what, holds in wrong.items():
        if holds:
            raise UserError(f"Llama 3.2 Vision cannot hold {what}; expected a model of its architecture")
