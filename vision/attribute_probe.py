"""What an image encoder knows of the objects of a scene: linear probes of colour and shape at an object's patches.

A probe that learns from named training scenes may learn which shapes a colour never has; one that learns from colours
without a name cannot, nor one that is not told that such pairs are wrong (as with `multimodal.unseen_pairs`). All are
judged on pairs of colour and shape that no training scene has.

Legend: N objects, P patches of a side, D width of the encoder.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision.encoder import ImageEncoder
from vision.picture import open_picture
from vision.scenes import AS_DRAWN, COLOURS, HELD_OUT, SHAPES, SceneMix, Split, extent, scene_sample
from vision.tiling import Tiling, batch_tiles

STEPS, RATE, WEIGHT_DECAY = 400, 3e-3, 0.1


@dataclass(frozen=True)
class Objects:
    """Features [N, 2 D] with colours and shapes [N]; -1 where there is no name."""

    features: Tensor
    colours: Tensor
    shapes: Tensor


@torch.no_grad()
def objects_of_scenes(
    encoder: ImageEncoder, *, count: int, seed: int, split: Split, mix: SceneMix = AS_DRAWN
) -> Objects:
    """Mean and maximum of the plain ViT's tokens over the patches that each object touches, in square scenes.

    Of held-out scenes, only the objects whose pair is held out.
    """
    size, side = encoder.tile_size, encoder.config.patch_side
    tiling = Tiling(size, 1, False, encoder.pixel_mean, encoder.pixel_std)
    features, colours, shapes = [], [], []
    for index in range(count):
        picture, scene, _ = scene_sample(index, seed=seed, split=split, size=(size, size), mix=mix)
        tokens = encoder.tokens_and_pool(batch_tiles([tiling.tile(open_picture(picture))]))[0][0]
        patches_PPD = tokens[1:].unflatten(0, (side, side))  # the class token comes first
        for thing in scene.objects:
            if split == "held_out" and thing.pair not in HELD_OUT:
                continue
            x, y, radius = extent(thing, width=size, height=size)
            rows, columns = (_patches(middle, radius, size // side, side) for middle in (y, x))
            touched_ND = patches_PPD[rows, columns].flatten(0, 1)
            features.append(torch.cat([touched_ND.mean(dim=0), touched_ND.amax(dim=0)]))
            colours.append(list(COLOURS).index(thing.colour) if thing.colour else -1)
            shapes.append(SHAPES.index(thing.shape) if thing.shape else -1)
    return Objects(torch.stack(features), torch.tensor(colours), torch.tensor(shapes))


def _patches(middle: float, radius: float, pixels: int, side: int) -> slice:
    return slice(max(0, int((middle - radius) // pixels)), min(side, int((middle + radius) // pixels) + 1))


def probe_accuracy(
    train: Objects, tests: dict[str, Objects], *, attribute: str, seed: int = 0, undenied: bool = False
) -> dict[str, float]:
    """Accuracy on each test of a linear classifier that learns `attribute` ("colours" or "shapes") from `train`.

    `undenied`: what never goes with the other attribute of an object is left out of its softmax in training.
    """
    labels = getattr(train, attribute)
    kept = labels >= 0
    mean, deviation = train.features.mean(dim=0), train.features.std(dim=0) + 1e-4
    torch.manual_seed(seed)
    classifier = nn.Linear(train.features.shape[1], len(COLOURS if attribute == "colours" else SHAPES))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    inputs = ((train.features - mean) / deviation)[kept]
    left_out = _never_together(train, attribute)[kept] & undenied
    for _ in range(STEPS):
        loss = F.cross_entropy(classifier(inputs).masked_fill(left_out, -torch.inf), labels[kept])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = {name: classifier((test.features - mean) / deviation).argmax(dim=1) for name, test in tests.items()}
    return {name: (said[name] == getattr(test, attribute)).float().mean().item() for name, test in tests.items()}


def _never_together(found: Objects, attribute: str) -> Tensor:
    """bool [N, names]: the names of `attribute` that no object with the other attribute of this one has."""
    apart = torch.ones(len(COLOURS) + 1, len(SHAPES) + 1, dtype=torch.bool)  # the last ones for what has no name
    apart[found.colours, found.shapes] = False
    apart[-1], apart[:, -1] = False, False
    return apart[:, found.shapes].T[:, :-1] if attribute == "colours" else apart[found.colours, :-1]


def probe_encoder(encoder: ImageEncoder, *, count: int = 1200, seed: int = 0) -> dict[str, float]:
    """Accuracies of the probes: `shape` and `colour`, on other training scenes and on held-out pairs; `_undenied` for
    probes that are not told that a pair is wrong because it is never there, `_unnamed` for the probe of shapes that
    learns from colours without a name.

    Args:
        count: scenes that a probe learns from; the tests have a quarter of the training scenes and half as many
            held-out ones.
    """
    named = objects_of_scenes(encoder, count=count, seed=seed + 1, split="train")
    unnamed = objects_of_scenes(encoder, count=count, seed=seed + 2, split="train", mix=SceneMix(unnamed=1.0))
    tests = {
        "": objects_of_scenes(encoder, count=count // 4, seed=seed + 3, split="train"),
        "_held_out": objects_of_scenes(encoder, count=count // 2, seed=seed + 4, split="held_out"),
    }
    found = {
        "colour": probe_accuracy(named, tests, attribute="colours", seed=seed),
        "shape": probe_accuracy(named, tests, attribute="shapes", seed=seed),
        "colour_undenied": probe_accuracy(named, tests, attribute="colours", seed=seed, undenied=True),
        "shape_undenied": probe_accuracy(named, tests, attribute="shapes", seed=seed, undenied=True),
        "shape_unnamed": probe_accuracy(unnamed, tests, attribute="shapes", seed=seed),
    }
    return {f"{name}{test}": value for name, scores in found.items() for test, value in scores.items()}
