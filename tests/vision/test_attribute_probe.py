"""Probes: they read what is there, at the patches where it is, and nothing from what is not."""

import pytest
import torch

from vision.attribute_probe import Objects, objects_of_scenes, probe_accuracy
from vision.encoder import ImageEncoder, ImageEncoderConfig
from vision.scenes import COLOURS, HELD_OUT, SHAPES, SceneMix


def encoder() -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(ImageEncoderConfig(tile_size=32, patch_size=4, width=32, layers=1, heads=2, max_tiles=1)).eval()


def test_a_probe_reads_what_is_linear_and_is_at_chance_otherwise() -> None:
    torch.manual_seed(0)
    shapes = torch.randint(len(SHAPES), (800,))
    known = Objects(torch.eye(len(SHAPES))[shapes] + 0.1 * torch.randn(800, len(SHAPES)), shapes, shapes)
    noise = Objects(torch.randn(800, 4), shapes, shapes)
    assert probe_accuracy(known, {"": known}, attribute="shapes")[""] > 0.99
    other = Objects(torch.randn(800, 4), shapes, shapes)
    assert probe_accuracy(noise, {"": other}, attribute="shapes")[""] < 0.25


@pytest.mark.parametrize("attribute", ["colours", "shapes"])
def test_a_probe_that_does_not_deny_reads_pairs_that_are_never_there(attribute: str) -> None:
    """Colour and shape add up in the features; of the pairs (c, c) none is trained on."""
    torch.manual_seed(0)
    colours, shapes = torch.randint(len(COLOURS), (3000,)), torch.randint(len(SHAPES), (3000,))
    clear = (1.5, 4.0) if attribute == "colours" else (4.0, 1.5)  # what is denied is denied by the clearer one
    both = torch.cat([clear[0] * torch.eye(len(COLOURS))[colours], clear[1] * torch.eye(len(SHAPES))[shapes]], 1)
    features = both + 0.5 * torch.randn_like(both)

    def objects(chosen: torch.Tensor) -> Objects:
        return Objects(features[chosen], colours[chosen], shapes[chosen])

    unnamed = Objects(features[:50], torch.full((50,), -1), torch.full((50,), -1))
    new, seen = objects(colours == shapes), objects(colours != shapes)
    denied, undenied = (
        probe_accuracy(seen, {"": new}, attribute=attribute, undenied=undenied)[""] for undenied in (False, True)
    )
    assert denied < 0.7 and undenied > 0.85
    joined = Objects(*(torch.cat([getattr(seen, n), getattr(unnamed, n)]) for n in ("features", "colours", "shapes")))
    assert probe_accuracy(joined, {"": new}, attribute=attribute, undenied=True)[""] == pytest.approx(
        undenied, abs=0.03
    )


def test_an_objects_features_are_those_of_its_own_patches() -> None:
    found = objects_of_scenes(encoder(), count=300, seed=0, split="train")
    tests = {"": objects_of_scenes(encoder(), count=60, seed=1, split="train")}
    # A random encoder passes colours on, wherever the object is.
    assert probe_accuracy(found, tests, attribute="colours")[""] > 0.6


def test_held_out_objects_alone_and_missing_names() -> None:
    held_out = objects_of_scenes(encoder(), count=20, seed=0, split="held_out")
    names = [
        (list(COLOURS)[c], SHAPES[s]) for c, s in zip(held_out.colours.tolist(), held_out.shapes.tolist(), strict=True)
    ]
    assert len(names) >= 20 and set(names) <= HELD_OUT
    unnamed = objects_of_scenes(encoder(), count=20, seed=0, split="train", mix=SceneMix(unnamed=1.0))
    assert ((unnamed.colours < 0) != (unnamed.shapes < 0)).all()
