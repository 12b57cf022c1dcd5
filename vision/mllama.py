"""Llama 3.2 Vision, in and out: "mllama" folders of `transformers` <-> decoder, image encoder and image adapter.

The decoder's self-attention layers are a plain Llama, bit for bit; its cross-attention layers are an image adapter like
any other. `vision.mllama_names` maps the tensors, `vision.mllama_config` the settings.

Numerics are a setting of the image encoder (`vision.tile_layout`), which the adapter's folder records. "reference"
computes what Meta's code does. `transformers` 5 departs from that: it takes the intermediate features one layer too
late, lets text before a picture see it, and is causal between text and picture where no mask is given; what is written
here keeps the released meaning of the settings. One thing of Meta's code is not followed: after a prompt with several
pictures its generated tokens see none of them; here, as in `transformers`, they see what the end of the prompt sees.
"""

import copy
import json
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, MllamaForConditionalGeneration, MllamaProcessor
from transformers.initialization import no_init_weights
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from multimodal.adapter_files import open_tensors
from multimodal.adapter_folder import TABLE
from multimodal.decoder import FrozenDecoder
from multimodal.errors import UserError
from multimodal.files import new_folder
from multimodal.messages import placeholder
from multimodal.model import MultimodalModel
from multimodal.pretrained import read_tokenizer, write_decoder
from multimodal.tokenizer import AnyTokenizer
from multimodal.train.precision import resolve_device
from multimodal.weight_folder import SHARD_BYTES, Shape, expect_same_tensors, open_weights, write_weights
from vision.image_modality import ImageConfig, image_of
from vision.mllama_config import (
    NEW_TOKENS,
    as_written,
    image_config,
    llama_config,
    mllama_config,
    read_config,
    sizes_of,
)
from vision.mllama_names import canonical, read_into, released, rows_of, written_from
from vision.tile_layout import Numerics
from vision.tiling import Tiling

IMAGE_TOKEN = placeholder("image")


def read_mllama(folder: Path, *, numerics: Numerics = "reference", device: str = "auto") -> MultimodalModel:
    """A model of a Llama 3.2 Vision folder, in eval mode: the decoder in the dtype of the files, image parts in fp32.

    Args:
        folder: config, tokenizer and safetensors as on the hub, or as `transformers` saves them.
        numerics: "reference" for what the weights were trained with; "strict" lets nothing see padding.

    Raises:
        UserError: another model, settings that Graft has not, tensors that do not fit (up to ten are named), a shard
            that is truncated or a pickle, no tokenizer with <|image|> behind the vocabulary, pictures prepared in
            another way.
    """
    config: Any = read_config(folder)
    with as_written(folder / "config.json"):
        shapes = _expected_shapes(config)
    weights = open_weights(folder)
    names = {canonical(name): name for name in weights.shapes}
    if len(names) < len(weights.shapes):
        raise UserError(f"{folder}: tensors with the prefixes of both before and after transformers 4.52; expected one")
    expect_same_tensors(
        {name: list(weights.shapes[own]) for name, own in names.items()},
        {name: list(shape) for name, shape in shapes.items()},
        problem=f"{folder}: the weights do not fit its config.json",
    )
    tokenizer = _read_tokenizer(folder, config.text_config.vocab_size)
    dtype = weights.dtype(names["lm_head.weight"])
    with no_init_weights():  # every value comes from the files
        lm = AutoModelForCausalLM.from_config(llama_config(config), dtype=dtype)
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter.zero_()
        model = MultimodalModel(FrozenDecoder(lm, extra_tokens=NEW_TOKENS), tokenizer, decoder_name=str(folder))
        model.add("image", image_config(config, numerics))
    if (file := folder / "generation_config.json").is_file():
        with as_written(file):
            lm.generation_config = GenerationConfig.from_pretrained(folder)
    _expect_same_pictures(folder, image_of(model).tiling)
    ours, sizes = tensors_of(model), sizes_of(config, numerics)
    rows = rows_of(sizes)
    with torch.no_grad():
        for name, tensor in weights:
            read_into(ours, tensor, rows[canonical(name)], sizes)
    return model.to(resolve_device(device)).eval()


def write_mllama(model: MultimodalModel, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a folder that `MllamaForConditionalGeneration` and `MllamaProcessor` load, in the decoder's dtype.

    The names are those of the hub, which every version of `transformers` reads. The folder cannot say "strict": another
    reader computes with padding.

    Raises:
        UserError: the folder holds something, or the model is not of the architecture of Llama 3.2 Vision.
    """
    others = [kind for kind in model.modalities if kind != "image"]
    if others or "image" not in model.modalities:
        raise UserError(f"a model with {', '.join(model.modalities) or 'no adapter'}; expected an image adapter alone")
    lm: Any = model.decoder.lm
    image: ImageConfig = image_of(model).config
    config: Any = mllama_config(lm, image, dtype=lm.dtype)
    sizes = sizes_of(config, image.encoder.numerics)
    processor = MllamaProcessor(
        image_processor=_processor(image_of(model).tiling),
        tokenizer=_with_image_token(model.tokenizer, config.text_config.vocab_size),
        chat_template=model.tokenizer.chat_template,
    )
    ours, rows, shapes = tensors_of(model), rows_of(sizes), _expected_shapes(config)

    @torch.no_grad()
    def tensor(name: str) -> Tensor:
        own = canonical(name)
        return written_from(ours, torch.zeros(shapes[own], dtype=torch.float32), rows[own], sizes)

    with new_folder(folder) as draft:
        config.save_pretrained(draft)
        lm.generation_config.save_pretrained(draft)
        processor.save_pretrained(draft)
        processor.image_processor.save_pretrained(draft)  # where transformers before 5 looks for it
        by_released_name = {released(name): shape for name, shape in shapes.items()}
        write_weights(draft, by_released_name, tensor, dtype=lm.dtype, shard_bytes=shard_bytes)


def split_mllama(source: Path, target: Path, *, numerics: Numerics = "reference") -> None:
    """Write a Llama 3.2 Vision folder as `target/decoder`, a plain Llama, and `target/adapter` for it.

    Raises:
        UserError: as `read_mllama`, or the target holds something.
    """
    with new_folder(target) as draft:
        model = read_mllama(source, numerics=numerics, device="cpu")
        write_decoder(cast(Any, model.decoder.lm), model.tokenizer, draft / "decoder")
        model.decoder_name = str(target.resolve() / "decoder")
        model.save_pretrained(draft / "adapter", recipe={"converted_from": source.name})


def join_mllama(adapter: Path, target: Path) -> None:
    """The inverse: write an adapter, a folder or one of the hub, and the decoder that it names as a Llama 3.2 Vision
    folder.

    Raises:
        UserError: as `MultimodalModel.from_pretrained` and `write_mllama`.
    """
    model = MultimodalModel.from_pretrained(adapter, device="cpu")
    assert model.loaded_from is not None
    with torch.no_grad(), open_tensors(model.loaded_from) as tensors:
        # An adapter brings its own rows alone; the released model's spare ones, which no token reads, are there too.
        model.decoder.extra_embedding.weight.copy_(tensors.get_tensor(TABLE))
    write_mllama(model, target)


def tensors_of(model: MultimodalModel) -> dict[str, Tensor]:
    """All tensors of a model by the names of `vision.mllama_names`; a tied head under its own name too."""
    return {
        **{f"lm.{name}": tensor for name, tensor in model.decoder.lm.state_dict(keep_vars=True).items()},
        "extra_embedding.weight": model.decoder.extra_embedding.weight,
        **image_of(model).state_dict(keep_vars=True),
    }


def _expected_shapes(config: Any) -> dict[str, Shape]:
    with torch.device("meta"):
        tensors = MllamaForConditionalGeneration(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _read_tokenizer(folder: Path, vocab_size: int) -> AnyTokenizer:
    tokenizer = read_tokenizer(str(folder), name=str(folder))
    file = folder / "chat_template.json"
    if not tokenizer.chat_template and file.is_file():  # before transformers 5 the processor's alone
        with as_written(file):
            template = json.loads(file.read_text())["chat_template"]
            if not isinstance(template, str):
                raise TypeError(f"chat_template {template!r}")
            tokenizer.chat_template = template
    found = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if found != vocab_size:
        raise UserError(f"{folder}: the tokenizer has {IMAGE_TOKEN} at {found}; expected {vocab_size}, as config.json")
    return tokenizer


def _with_image_token(tokenizer: AnyTokenizer, vocab_size: int) -> AnyTokenizer:
    """A copy of a tokenizer in which the placeholder is a token, the first behind the vocabulary."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if (found := tokenizer.get_vocab()[IMAGE_TOKEN]) != vocab_size:
        raise UserError(
            f"the tokenizer would have {IMAGE_TOKEN} at {found}; Llama 3.2 Vision expects it at {vocab_size}, behind "
            "the vocabulary"
        )
    return tokenizer


def _processor(tiling: Tiling) -> MllamaImageProcessorPil:
    return MllamaImageProcessorPil(
        size={"height": tiling.tile_size, "width": tiling.tile_size},
        max_image_tiles=tiling.max_tiles,
        image_mean=list(tiling.mean),
        image_std=list(tiling.std),
    )


def _expect_same_pictures(folder: Path, tiling: Tiling) -> None:
    """Refuse a folder whose image processor prepares pictures in another way; without one there is nothing to say."""
    files = [name for name in ("preprocessor_config.json", "processor_config.json") if (folder / name).is_file()]
    if not files:
        return
    with as_written(folder / " or ".join(files)):
        found, own = MllamaImageProcessorPil.from_pretrained(folder), _processor(tiling)
    for name in ("size", "max_image_tiles", "image_mean", "image_std", "resample", "do_normalize", "do_rescale"):
        if (theirs := getattr(found, name)) != (ours := getattr(own, name)):
            raise UserError(f"{folder}: its image processor has {name} {theirs}; expected {ours}")
