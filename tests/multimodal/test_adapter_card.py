"""The model card: the hub can read it, and no number stands in it that was not measured."""

import json
from typing import Any

import yaml
from huggingface_hub import ModelCard

from multimodal.adapter_card import model_card

CONFIG: dict[str, Any] = {
    "decoder": "someone/llama",
    "decoder_sha256": "0123456789abcdef" * 4,
    "modalities": {"image": {"encoder": {"width": 16}, "numerics": "strict"}, "audio": {}},
    "borrowed": {"modalities.image.encoder.model": {"name": "someone/clip", "sha256": "ab"}},
    "versions": {"graft": "0.1.0"},
    "recipe": {"steps": 3},
    "metrics": {
        "cider_d": 0.25,
        "pictures": 40,
        "nan": float("nan"),
        "note": "9.5",
        "done": True,
        "dev": {"wer": 0.75},
    },
}


def test_the_hub_can_read_it() -> None:
    card = ModelCard(model_card(CONFIG))
    assert card.data.base_model == "someone/llama" and card.data.tags == ["image", "audio"]
    assert card.data.library_name == "graft-multimodal" and card.data.license is None
    assert ModelCard(model_card(CONFIG, license="apache-2.0")).data.license == "apache-2.0"


def test_a_folder_is_no_base_model() -> None:
    for decoder in ("builtin", "/home/someone/llama", "runs/decoder/decoder"):
        front = yaml.safe_load(model_card(CONFIG | {"decoder": decoder}).split("---")[1])
        assert front == {"library_name": "graft-multimodal", "tags": ["image", "audio"]}


def test_only_numbers_that_were_measured() -> None:
    card = model_card(CONFIG)
    rows = [line for line in card.splitlines() if line.startswith("| ")][2:]
    assert rows == ["| cider_d | 0.25 |", "| pictures | 40 |"]
    none = model_card(CONFIG | {"metrics": {}})
    assert "No metric has been measured." in none and "| metric" not in none


def test_it_says_what_the_configuration_says() -> None:
    card = model_card(CONFIG, hub_name="me/adapter")
    assert 'from_pretrained("me/adapter")' in card and "`someone/clip` is not in this folder" in card
    blocks = [json.loads(block.split("```")[0]) for block in card.split("```json")[1:]]
    assert blocks == [CONFIG["modalities"], CONFIG["recipe"], CONFIG["versions"]]
