"""Tiny random Llama 3.2 Vision models, as `transformers` makes and saves them.

    from tests.vision.tiny_mllama import TILE, released, save_released, with_taps_of_reference

Tiles are 28 pixels with 2 x 2 patches: 5 tokens, padded to 8. Of 6 text layers the 2nd and the 5th are cross-attention.
"""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor
from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaProcessor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from multimodal.batch import Batch, Sample, Turn
from multimodal.model import MultimodalModel
from multimodal.tokenizer import AnyTokenizer
from multimodal.weight_folder import WEIGHTS
from tests.multimodal.tiny_tokenizers import foreign_tokenizer
from vision.mllama_names import released as released_name
from vision.tiling import CLIP_MEAN, CLIP_STD

RELEASED_TEXT: dict[str, dict[str, Any]] = {
    "11b": {},
    "90b": {
        "hidden_size": 8192,
        "num_hidden_layers": 100,
        "num_attention_heads": 64,
        "intermediate_size": 28672,
        "cross_attention_layers": list(range(3, 100, 5)),
    },
}
"""Of Llama 3.2 Vision, where its text model has other settings than the defaults of `transformers`."""
TILE, WIDTH = 28, 16
CROSS, TAPS = (1, 4), (1, 3)
# As the released one: it writes <|image|> for picture parts, and a system message only where there is no picture.
TEMPLATE = (
    "{{ bos_token }}{% set seen = namespace(image=false) %}{% for m in messages %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{% set seen.image = true %}{% endif %}{% endfor %}{% endfor %}"
    "{% if not seen.image %}<|start_header_id|>system<|end_header_id|>\n\nThe user is a friend.<|eot_id|>{% endif %}"
    "{% for m in messages %}{% if seen.image and m['role'] == 'system' %}"
    "{{ raise_exception('no system message with pictures') }}{% endif %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<|image|>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@cache
def tokenizer() -> AnyTokenizer:
    """With <|image|> as the first id behind the vocabulary. Not to be changed: all tests share it."""
    made = copy.deepcopy(foreign_tokenizer("llama3"))
    made.pad_token = "</s>"
    made.padding_side = "left"
    made.add_tokens([AddedToken("<|image|>", special=True, normalized=False)], special_tokens=True)
    made.chat_template = TEMPLATE
    return made


def released_config(**text: Any) -> MllamaConfig:
    """`text` goes into the text configuration."""
    vocab = len(tokenizer()) - 1
    return MllamaConfig(
        image_token_index=vocab,
        vision_config={
            "hidden_size": WIDTH,
            "num_hidden_layers": 4,
            "num_global_layers": 2,
            "attention_heads": 2,
            "intermediate_size": 2 * WIDTH,
            "vision_output_dim": WIDTH * (1 + len(TAPS)),
            "image_size": TILE,
            "patch_size": 14,
            "intermediate_layers_indices": list(TAPS),
        },
        text_config={
            "vocab_size": vocab,
            "hidden_size": 32,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
            "cross_attention_layers": list(CROSS),
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": tokenizer().bos_token_id,
            "eos_token_id": tokenizer().eos_token_id,
            "pad_token_id": tokenizer().eos_token_id,
            **text,
        },
    )


def released(*, seed: int = 0, attention: str = "sdpa", **text: Any) -> Any:
    """A model whose weights all matter: open gates, tables that differ everywhere, padding tiles' rows among them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MllamaForConditionalGeneration._from_config(released_config(**text), attn_implementation=attention)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "gate" in name and parameter.numel() == 1:
                    parameter.copy_(torch.randn(1).abs() + 0.3)
                elif "norm" in name and name.endswith("weight"):
                    parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
                else:
                    parameter.normal_(std=0.2)
    return model.eval()


def with_taps_of_reference(model: Any) -> Any:
    """Its taps one layer earlier: `transformers` takes the outputs of the layers whose inputs are meant."""
    model.model.vision_model.intermediate_layers_indices = [tap - 1 for tap in TAPS]
    return model


def processor() -> MllamaProcessor:
    pictures = MllamaImageProcessorPil(
        size={"height": TILE, "width": TILE}, max_image_tiles=4, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD)
    )
    return MllamaProcessor(image_processor=pictures, tokenizer=tokenizer(), chat_template=TEMPLATE)


def save_released(folder: Path, model: Any = None, *, hub_names: bool = True) -> Path:
    """A folder as on the hub, or with the names that transformers has since 4.52."""
    model = released() if model is None else model
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    processor().save_pretrained(folder)
    tensors = {released_name(n) if hub_names else n: t.contiguous() for n, t in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def edit_config(folder: Path, part: str, **changes: Any) -> None:
    """Change settings of `config.json`, in one of its parts or ("") at its top."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    (config[part] if part else config).update(changes)
    file.write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Any) -> None:
    """`change(tensors)` may add, drop and replace tensors of the one file."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def batch_of(
    model: MultimodalModel, texts: list[str], pictures: list[list[Image.Image]], *, pad_left: bool = True
) -> tuple[Batch, dict[str, Tensor]]:
    """The same texts with <|image|> in them, and pictures, for Graft's model and for that of transformers."""
    theirs = processor()(
        text=texts,
        images=[row for row in pictures if row] or None,
        padding=True,
        padding_side="left" if pad_left else "right",
        add_special_tokens=False,
        return_tensors="pt",
    )
    image: Any = model.modalities["image"]
    samples = []
    for ids, mask, row in zip(theirs["input_ids"], theirs["attention_mask"], pictures, strict=True):
        turn = Turn(ids[mask.bool()].tolist(), [], {"image": tuple(range(len(row)))})
        samples.append(Sample({"image": tuple(image.prepare(p) for p in row)}, (turn,)))
    batch = model.collate(samples, pad_left=pad_left)
    assert torch.equal(
        batch.input_ids[batch.attention_mask.bool()], theirs["input_ids"][theirs["attention_mask"].bool()]
    )
    return batch, dict(theirs)
