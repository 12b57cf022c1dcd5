"""The mapping of Llama 3.2 Vision's tensors: every number on both sides is used exactly once."""

from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, MllamaConfig, MllamaForConditionalGeneration

from multimodal.decoder import FrozenDecoder
from multimodal.decoder_sizes import decoder_sizes
from tests.vision.tiny_mllama import RELEASED_TEXT, released_config
from vision.image_modality import ImageModality
from vision.mllama_config import NEW_TOKENS, image_config, llama_config, sizes_of
from vision.mllama_names import PREFIXES, Sizes, canonical, released, rows_of
from vision.tile_layout import Numerics
from vision.tiling import candidate_grids


def counters(numerics: Numerics) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Sizes]:
    """A zero for every number of the checkpoint and of Graft's model, by tensor."""
    config = released_config()
    decoder = FrozenDecoder(AutoModelForCausalLM.from_config(llama_config(config)), extra_tokens=8)
    image = ImageModality(image_config(config, numerics), decoder_sizes(decoder))
    ours = {
        **{f"lm.{name}": tensor for name, tensor in decoder.lm.state_dict().items()},
        "extra_embedding.weight": decoder.extra_embedding.weight,
        **image.state_dict(),
    }
    theirs = MllamaForConditionalGeneration(config).state_dict()
    zero = [{name: torch.zeros_like(tensor) for name, tensor in side.items()} for side in (theirs, ours)]
    return zero[0], zero[1], sizes_of(config, numerics)


@pytest.mark.parametrize("numerics", ["reference", "strict"])
def test_every_number_is_mapped_exactly_once_on_both_sides(numerics: Numerics) -> None:
    theirs, ours, sizes = counters(numerics)
    mapping = rows_of(sizes)
    assert mapping.keys() == theirs.keys()
    for name, rows in mapping.items():
        for row in rows:
            parts = list(zip(row.theirs_at(theirs[name], sizes), row.ours_at(ours[row.ours], sizes), strict=True))
            assert parts and all(a.shape == b.shape for a, b in parts), name
            for their_part, our_part in parts:
                their_part += 1
                our_part += 1
    assert all(bool((count == 1).all()) for count in ours.values())
    for name, count in theirs.items():
        if numerics == "strict" and "tile" in name and not name.endswith("gate"):
            # Rows of padding tiles, and of "no picture", have no place where nothing is padded.
            tiles = count.view(9, 4, -1)
            owned = torch.tensor(
                [[tile < grid[0] * grid[1] for tile in range(4)] for grid in [(0, 0), *candidate_grids(4)]]
            )
            assert bool((tiles == owned[:, :, None]).all()), name
        else:
            assert bool((count == 1).all()), name


@pytest.mark.parametrize("size", RELEASED_TEXT)
def test_the_released_sizes_are_mapped_whole(size: str) -> None:
    """On the meta device: every tensor of either side, and each of their numbers, in views of equal shapes."""
    config = MllamaConfig(text_config=RELEASED_TEXT[size])
    sizes = sizes_of(config, "reference")
    with torch.device("meta"):
        theirs = MllamaForConditionalGeneration(config).state_dict()
        decoder = FrozenDecoder(AutoModelForCausalLM.from_config(llama_config(config)), extra_tokens=NEW_TOKENS)
        image = ImageModality(image_config(config, "reference"), decoder_sizes(decoder))
    lm = {f"lm.{name}": tensor for name, tensor in decoder.lm.state_dict().items()}
    ours = {**lm, "extra_embedding.weight": decoder.extra_embedding.weight, **image.state_dict()}
    mapping, read, filled = rows_of(sizes), Counter[str](), Counter[str]()
    assert mapping.keys() == theirs.keys()
    for name, row in ((name, row) for name, rows in mapping.items() for row in rows):
        parts = zip(row.theirs_at(theirs[name], sizes), row.ours_at(ours[row.ours], sizes), strict=True)
        for their_part, our_part in parts:
            assert their_part.shape == our_part.shape, name
            read[name] += their_part.numel()
            filled[row.ours] += our_part.numel()
    assert read == {name: tensor.numel() for name, tensor in theirs.items()}
    assert filled == {name: tensor.numel() for name, tensor in ours.items()}


def test_layers_are_numbered_as_released() -> None:
    sizes = Sizes(100, 40, (3, 8, 13, 18, 23, 28, 33, 38), 32, 8, 1280, 5, 4, True)
    assert [number for _, number in sizes.layers("cross")] == [3, 7, 11, 15, 19, 23, 27, 31]
    assert len(sizes.layers("self")) == 32 and dict(sizes.layers("self"))[39] == 31


def test_places_of_the_cross_attention_layers() -> None:
    usual, other = (image_config(released_config(cross_attention_layers=c), "strict").adapter for c in ([1, 4], [1, 3]))
    assert usual.layers_of(4) == [1, 3] and usual.placed is None, "by the rule"
    assert other.layers_of(4) == [1, 2] == list(other.placed or ())


def test_names_of_the_hub_and_of_transformers_are_inverse() -> None:
    names = MllamaForConditionalGeneration(released_config()).state_dict().keys()
    hub = [released(name) for name in names]
    assert [canonical(name) for name in hub] == list(names) == [canonical(name) for name in names]
    assert {old for old, _ in PREFIXES} == {next(old for old, _ in PREFIXES if name.startswith(old)) for name in hub}
