"""Load a decoder: the built-in one, a folder, or a name of the hub."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError, reported_as, up_to_ten
from multimodal.quantization import Quantization, quantize_decoder
from multimodal.safe_weights import SAFE, expect_safetensors
from multimodal.tokenizer import AnyTokenizer
from multimodal.train.config import TrainConfig
from multimodal.train.precision import resolve_device, resolve_precision

BUILTIN = "builtin"


def builtin_folder(part: str) -> Path:
    """The folder of a part that comes with Graft: "decoder", "image_encoder" or "speech_encoder"."""
    return Path(str(files("multimodal") / "builtin" / part))


def encoder_folder(folder: Path, part: str) -> Path:
    """Where an encoder is: "builtin" is the part of that name that comes with Graft."""
    return builtin_folder(part) if str(folder) == BUILTIN else folder


def decoder_path(name: str) -> str:
    """Where the weights of `name` are: "builtin" is the decoder that comes with Graft."""
    return str(builtin_folder("decoder")) if name == BUILTIN else name


def find_decoder(name: str) -> str:
    """Where the decoder `name` is: "builtin", a folder of `transformers`, or what may be a name of the hub.

    Raises:
        UserError: a path at which there is no model folder.
    """
    path = decoder_path(name)
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"decoder {name}: no config.json in that folder; expected a model folder of transformers")
    elif folder.exists() or folder.is_absolute() or path.startswith(".") or path.count("/") > 1:
        raise UserError(f"decoder {name}: no such folder; expected a model folder of transformers")
    return path


def read_decoder(name: str, *, dtype: torch.dtype) -> tuple[PreTrainedModel, AnyTokenizer]:
    """A causal decoder of `transformers` as it is, and its tokenizer.

    Raises:
        UserError: no such decoder, no tokenizer beside it, or one that would run code.
    """
    path = find_decoder(name)
    expect_safetensors(Path(path), what="decoder", reader="AutoModelForCausalLM")
    expected = "expected a causal decoder of transformers"
    with reported_as(f"decoder {name}: cannot be loaded", expected=expected), quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **SAFE
        )
    lm, found = loaded
    _expect_all_weights(name, found)
    return lm, read_tokenizer(path, name=name)


def write_decoder(lm: PreTrainedModel, tokenizer: AnyTokenizer, folder: Path) -> None:
    """A folder that `read_decoder` and `transformers` read.

    Raises:
        UserError: safetensors cannot write (a full disk).
    """
    try:
        with quiet_transformers():
            lm.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(f"cannot write {folder}: {error}; expected a writable disk with room") from error


def read_tokenizer(path: str, *, name: str) -> AnyTokenizer:
    """The tokenizer of a decoder's folder or hub name; `name` is what the message calls the decoder.

    Raises:
        UserError: there is none.
    """
    with reported_as(f"decoder {name}: no usable tokenizer", expected="expected its files beside the weights"):
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its bars, for a second of reading or writing needs none (downloads keep theirs), and without its table of
    weights that do not fit: an error of one line names them.
    """
    verbosity, bars, silent = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()  # and those of downloads with them
    if not silent:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if silent:
            disable_progress_bars()


def _expect_all_weights(name: str, found: Mapping[str, Any]) -> None:
    """Raises UserError where transformers would make up weights (missing ones, and ones of another shape) or leave some
    out (those of layers that the configuration does not count).
    """
    wrong = [f"missing {key}" for key in found["missing_keys"]]
    wrong += [f"unknown {key}" for key in found["unexpected_keys"]]
    wrong += [f"{key} {list(there)} for {list(own)}" for key, there, own in found["mismatched_keys"]]
    if wrong:
        raise UserError(f"decoder {name}: weights do not fit its config.json: {up_to_ten(sorted(wrong))}")


def load_decoder(
    name: str, *, dtype: torch.dtype, device: torch.device, quantization: str = "none"
) -> tuple[FrozenDecoder, AnyTokenizer]:
    """The frozen decoder, quantised from weights of that dtype, and its tokenizer.

    Raises:
        UserError: as `read_decoder` and `quantize_decoder`, or not a decoder that can be grafted on.
    """
    lm, tokenizer = read_decoder(name, dtype=dtype)
    quantize_decoder(lm, quantization)
    return FrozenDecoder(lm.to(device)), tokenizer  # type: ignore[arg-type]


def load_for_training(
    name: str, config: TrainConfig, *, quantization: Quantization = "none"
) -> tuple[FrozenDecoder, AnyTokenizer]:
    """The frozen decoder and its tokenizer on the device of a run, in the precision that suits it.

    Raises:
        UserError: as `load_decoder`.
    """
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    # On a GPU the frozen weights stay in bf16; where arithmetic is fp32, so are they.
    dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
    return load_decoder(name, dtype=dtype, device=device, quantization=quantization)
