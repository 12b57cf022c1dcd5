"""The model card of an adapter folder: what `adapter_config.json` knows, in the hub's format. No number stands in it
that was not measured.
"""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

import yaml

from multimodal.hub_names import is_hub_name


def model_card(config: Mapping[str, Any], *, hub_name: str = "", license: str = "") -> str:
    """Markdown with YAML front matter.

    Args:
        config: `adapter_config.json`.
        hub_name: under which the folder is published, for the example.
        license: of the adapter; empty: left to whoever publishes it.
    """
    kinds, decoder = list(config["modalities"]), config["decoder"]
    in_words = decoder_in_words(decoder, config.get("decoder_quantization", "none"))
    recipe = config.get("recipe", {})
    lines = [
        "---",
        yaml.safe_dump(_front_matter(kinds, decoder, license), sort_keys=False).strip(),
        "---",
        "",
        f"# {', '.join(kinds)} adapter",
        "",
        f"For the frozen decoder `{in_words}` (sha256 `{config['decoder_sha256'][:16]}...`), made with Graft.",
        *(f"Its encoder `{origin['name']}` is not in this folder." for origin in config.get("borrowed", {}).values()),
        "",
        *_metrics(config.get("metrics", {})),
        "",
        "```python",
        "from multimodal.model import MultimodalModel",
        "",
        f'model = MultimodalModel.from_pretrained("{hub_name or "this-folder"}")',
        "```",
        "",
        *_json("Modalities", config["modalities"]),
        *(_json("Recipe", recipe) if recipe else []),
        *_json("Versions", config.get("versions", {})),
    ]
    return "\n".join(lines)


def decoder_in_words(decoder: str, quantization: str) -> str:
    """A decoder's name, with how it was quantised."""
    return decoder if quantization == "none" else f"{decoder} in {quantization}"


def _front_matter(kinds: list[str], decoder: str, license: str) -> dict[str, Any]:
    """Metadata of the hub. A decoder that is a folder on somebody's disk is no base model there."""
    base = {"base_model": decoder, "base_model_relation": "adapter"} if is_hub_name(decoder) else {}
    return base | {"library_name": "graft-multimodal", "tags": kinds} | ({"license": license} if license else {})


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    numbers = {
        name: value
        for name, value in metrics.items()
        if isinstance(value, float | int) and not isinstance(value, bool) and isfinite(value)
    }
    if not numbers:
        return ["No metric has been measured."]
    return ["| metric | value |", "| --- | --- |", *(f"| {name} | {value:.4g} |" for name, value in numbers.items())]


def _json(title: str, values: Any) -> list[str]:
    return [f"## {title}", "", "```json", json.dumps(values, indent=2), "```", ""]
