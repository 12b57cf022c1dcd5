"""Rendered scenes: deterministic, held-out pairs kept out, and every attribute visible in the pixels."""

import dataclasses
import hashlib
import itertools
import math
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from vision.scenes import (
    ALL_PAIRS,
    COLOURS,
    DIGITS,
    HELD_OUT,
    SHAPES,
    SIZES,
    TRAIN_PAIRS,
    WORDS,
    Scene,
    SceneMix,
    SceneObject,
    Split,
    render,
    sample_scene,
    scene_sample,
)

CELLS = list(itertools.product(range(3), range(3)))


def many(split: Split, count: int = 2000) -> list[Scene]:
    rng = random.Random(7)
    return [sample_scene(rng, split=split) for _ in range(count)]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def ink(scene: Scene, *, width: int = 64, height: int = 64) -> np.ndarray:
    """Where the picture differs from its background, [height, width] bool."""
    difference = abs(pixels(render(scene, width=width, height=height)) - np.array(scene.background))
    return np.asarray((difference > 40).any(axis=2))


def one(shape: str = "square", colour: str = "blue", size: str = "large", row: int = 1, column: int = 1) -> Scene:
    return Scene((SceneObject(shape, colour, size, row, column),))


def test_same_sample_in_another_process() -> None:
    code = (
        "import hashlib; from vision.scenes import scene_sample\n"
        "for split in ('train', 'held_out', 'any'):\n"
        "    image, scene, rng = scene_sample(11, seed=5, split=split, size=64)\n"
        "    print(hashlib.sha256(image.tobytes() + repr(scene).encode()).hexdigest(), rng.random())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    splits: tuple[Split, ...] = ("train", "held_out", "any")
    for split, line in zip(splits, elsewhere, strict=False):
        image, scene, rng = scene_sample(11, seed=5, split=split, size=64)
        digest = hashlib.sha256(image.tobytes() + repr(scene).encode()).hexdigest()
        assert line == f"{digest} {rng.random()}"


def test_seed_split_and_index_each_change_the_scene() -> None:
    base = scene_sample(3, seed=1, split="any", size=64)[1]
    assert base == scene_sample(3, seed=1, split="any", size=112)[1]
    assert base != scene_sample(4, seed=1, split="any", size=64)[1]
    assert base != scene_sample(3, seed=2, split="any", size=64)[1]
    assert base != scene_sample(3, seed=1, split="train", size=64)[1]


def test_held_out_pairs_are_a_fair_share_and_leave_every_attribute_in_training() -> None:
    assert 0.15 <= len(HELD_OUT) / len(ALL_PAIRS) <= 0.2
    assert {colour for colour, _ in HELD_OUT} == {colour for colour, _ in TRAIN_PAIRS} == set(COLOURS)
    assert {shape for _, shape in HELD_OUT} == {shape for _, shape in TRAIN_PAIRS} == set(SHAPES)


def test_splits_hold_what_they_promise() -> None:
    train, held_out, any_scene = many("train"), many("held_out"), many("any")
    assert set().union(*(scene.pairs for scene in train)) == set(TRAIN_PAIRS)
    assert all(scene.held_out for scene in held_out)
    assert set().union(*(scene.pairs & HELD_OUT for scene in held_out)) == HELD_OUT
    assert set().union(*(scene.pairs for scene in any_scene)) == set(ALL_PAIRS)


def test_scenes_cover_the_whole_range() -> None:
    scenes = many("any")
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4}
    assert {scene.text for scene in scenes} == {None, *WORDS, *DIGITS}
    assert {thing.size for scene in scenes for thing in scene.objects} == set(SIZES)
    assert {(thing.row, thing.column) for scene in scenes for thing in scene.objects} == set(CELLS)
    alike = [
        scene for scene in scenes if len({(thing.pair, thing.size) for thing in scene.objects}) < len(scene.objects)
    ]
    assert 0.1 < len(alike) / len(scenes) < 0.6  # counts such as "two small red circles" occur, and so do their absence


def test_objects_overlap_neither_each_other_nor_the_text() -> None:
    for scene in many("any", 150):
        parts = [dataclasses.replace(scene, objects=(thing,), text=None) for thing in scene.objects]
        if scene.text is not None:
            parts.append(dataclasses.replace(scene, objects=()))
        covered = sum(ink(part, width=96, height=96).astype(int) for part in parts)
        # Neighbours that touch may share a pixel of smoothed edge, never more.
        assert (np.asarray(covered) > 1).sum() <= 6, scene


@pytest.mark.parametrize("size", SIZES)
def test_shapes_and_colours_look_different_at_64_pixels(size: str) -> None:
    # Compared as a reader of the picture sees them: over the pixels that either shape covers.
    for first, second in itertools.combinations(SHAPES, 2):
        a, b = ink(one(shape=first, size=size)), ink(one(shape=second, size=size))
        assert (a ^ b).sum() / (a | b).sum() > 0.12, (first, second)
    for first, second in itertools.combinations(COLOURS, 2):
        a, b = (pixels(render(one(colour=colour, size=size), width=64, height=64)) for colour in (first, second))
        assert abs(a - b)[32, 32].max() > 60, (first, second)


def test_large_is_clearly_larger_than_small() -> None:
    for shape in SHAPES:
        assert ink(one(shape=shape, size="large")).sum() > 2.2 * ink(one(shape=shape, size="small")).sum()


def test_every_word_and_digit_looks_different() -> None:
    pictures = {text: ink(Scene((), text=text)) for text in (*WORDS, *DIGITS)}
    for first, second in itertools.combinations(pictures, 2):
        assert (pictures[first] ^ pictures[second]).sum() > 12, (first, second)
    for text, picture in pictures.items():
        rows = np.flatnonzero(picture.any(axis=1))
        assert rows.min() >= 42, f"{text} leaves the bottom row"
        assert rows.max() - rows.min() >= 10, f"{text} is too small to read"


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 48), (48, 150), (301, 97), (448, 448), (17, 16)])
def test_any_resolution_and_aspect_ratio(width: int, height: int) -> None:
    for row, column in CELLS:
        scene = one("circle", row=row, column=column)
        image = render(scene, width=width, height=height)
        assert image.size == (width, height)
        assert image.mode == "RGB"
        ys, xs = np.nonzero(ink(scene, width=width, height=height))
        assert (int(ys.mean() * 3 / height), int(xs.mean() * 3 / width)) == (row, column)
        # Never stretched: a circle is as wide as it is high.
        assert abs((xs.max() - xs.min()) - (ys.max() - ys.min())) <= 1


def test_size_is_the_short_side_or_exact() -> None:
    for index in range(30):
        image, scene, _ = scene_sample(index, seed=0, split="train", size=64)
        assert image.size == scene.dimensions(64)
        assert min(image.size) == 64
        assert image.width / image.height == pytest.approx(scene.aspect, rel=0.02)
        assert scene_sample(index, seed=0, split="train", size=(90, 70))[0].size == (90, 70)


def test_jitter_never_leaves_the_cell() -> None:
    for offset in itertools.product((-1.0, 1.0), (-1.0, 1.0)):
        for shape, tilt in itertools.product(SHAPES, (-8.0, 8.0)):
            for size in SIZES:
                thing = SceneObject(shape, "black", size, 1, 1, offset=offset, tilt=tilt)
                ys, xs = np.nonzero(ink(Scene((thing,)), width=96, height=96))
                assert min(ys.min(), xs.min()) >= 31, (shape, size, offset)
                assert max(ys.max(), xs.max()) <= 64, (shape, size, offset)


def test_a_share_of_singles_shows_one_object_and_leaves_the_rest_as_it_was() -> None:
    plain, mixed = (
        [scene_sample(i, seed=2, split="train", size=8, mix=SceneMix(singles=share))[1] for i in range(200)]
        for share in (0.0, 0.5)
    )
    single = [len(new.objects) == 1 and new.objects == old.objects[:1] and new.text is None
              for old, new in zip(plain, mixed, strict=True)]  # fmt: skip
    assert 0.5 < sum(single) / 200 < 0.75  # a fifth has one object anyway
    assert all(new == old for alone, old, new in zip(single, plain, mixed, strict=True) if not alone)


def test_in_a_share_of_scenes_each_object_loses_its_colour_or_its_shape_name_which_leaves_the_rest_as_it_was() -> None:
    plain, mixed = (
        [scene_sample(i, seed=2, split="train", size=8, mix=SceneMix(unnamed=share))[1] for i in range(200)]
        for share in (0.0, 0.5)
    )
    kinds: Counter[str] = Counter()
    for old, new in zip(plain, mixed, strict=True):
        for was, thing in zip(old.objects, new.objects, strict=True):
            back = dataclasses.replace(thing, colour=was.colour, shape=was.shape, rgb=None, outline=None)
            assert back == was
            assert (thing.colour == "") == (thing.rgb is not None)
            assert (thing.shape == "") == (thing.outline is not None)
            if thing.rgb is not None:
                assert min(math.dist(thing.rgb, rgb) for rgb in COLOURS.values()) > 80
        lost = {was.pair: not new.colour for was, new in zip(old.objects, new.objects, strict=True)}
        assert all(lost[was.pair] == (not new.colour) for was, new in zip(old.objects, new.objects, strict=True))
        named = [all(thing.pair) for thing in new.objects]
        assert all(named) or not any(named)
        kinds["named" if all(named) else "mixed" if len({*lost.values()}) == 2 else "alike"] += 1
    assert 80 < kinds["named"] < 120 and kinds["mixed"] > 25 and kinds["alike"] > 25


def test_the_first_scenes_have_no_names() -> None:
    mix = SceneMix(unnamed_first=5)
    named = [all(scene_sample(i, seed=0, split="train", size=8, mix=mix)[1].objects[0].pair) for i in range(10)]
    assert named == [False] * 5 + [True] * 5


def test_what_has_no_name_is_drawn() -> None:
    left_half = ((-1.0, -1.0), (0.0, -1.0), (0.0, 1.0), (-1.0, 1.0))
    thing = SceneObject("", "", "large", 1, 1, rgb=(0, 160, 160), outline=left_half)
    image = render(Scene((thing,)), width=60, height=60)
    assert image.getpixel((25, 30)) == (0, 160, 160)
    assert image.getpixel((35, 30)) == Scene(()).background
