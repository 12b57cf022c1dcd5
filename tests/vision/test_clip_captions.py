"""Clips in words: a caption names every object once, a full description answers every question."""

import random
import re
from dataclasses import replace
from itertools import pairwise

from vision.clip_captions import clip_caption, clip_inventory
from vision.clip_language import clip_sample, questions_by_kind
from vision.clip_scenes import is_held_out, reverse
from vision.clip_ways import COUNTS, VERBS

RANKS = ("first", "last", "fastest", "slowest")


def test_captions_name_every_object_once() -> None:
    for index in range(60):
        scene, _ = clip_sample(index, seed=1, split="any")
        for told in (scene, reverse(scene)):
            caption = clip_caption(told, random.Random(0))
            sentences = caption.removesuffix(".").split(". ")
            assert len(sentences) == len(scene.objects) and caption == clip_caption(told, random.Random(0))
            assert all(any(s.startswith(f"the {thing.name} ") for s in sentences) for thing in scene.objects)


def test_every_answer_follows_from_an_inventory() -> None:
    kinds = set[str]()
    for index in range(120):
        scene, _ = clip_sample(index, seed=1, split="any")
        for told in (scene, reverse(scene)):
            said = clip_inventory(told)
            for kind, asked in questions_by_kind(told).items():
                kinds.add(kind)
                for one in asked:
                    names = [thing.name for thing in told.objects]
                    assert read_off(said, one.question, names) == one.answer, (said, one)
    assert len(kinds) == 8


def test_an_inventory_leaves_nothing_to_chance() -> None:
    for index in range(40):
        scene, _ = clip_sample(index, seed=2, split="any")
        said = clip_inventory(scene)
        assert said == clip_inventory(replace(scene, objects=scene.objects[::-1]))
        assert said.count(";") == len(scene.objects) - 1


def test_what_is_held_out_stands_side_by_side_in_an_inventory() -> None:
    def neighbours(split: str) -> set[tuple[str, str]]:
        scenes = [clip_sample(index, seed=3, split=split)[0] for index in range(300)]  # type: ignore[arg-type]
        texts = [clip_inventory(replace(s, objects=s.objects[:1])).removeprefix("clip: ") for s in scenes]
        held_out = {is_held_out(s.objects[0].pair, s.objects[0].motion) for s in scenes}
        assert held_out == {split == "held_out"}
        pairs = set[tuple[str, str]]()
        for text in texts:
            words = re.sub(r",.*", "", text).split()
            pairs |= set(pairwise(words))
        return pairs

    learnt, unseen = neighbours("train"), neighbours("held_out")
    assert {("left", "red"), ("grows", "red"), ("swaps", "green"), ("hit", "purple")} <= unseen - learnt


def read_off(inventory: str, question: str, names: list[str]) -> str:
    """The answer that the words of an inventory alone give."""
    lines = inventory.removeprefix("clip: ").split("; ")
    name = next((name for name in names if f"the {name} " in question), "")
    facts = {re.search(r"\w+ \w+(?=$|, | with )", line).group(): line for line in lines}  # type: ignore[union-attr]
    assert sorted(facts) == sorted(names)
    if not name:
        verb, rank = re.match(r"which object (is hit|\w+)(.*)\?", question).groups()  # type: ignore[union-attr]
        wanted = rank.split()[-1] if rank.split()[-1:] in [[r] for r in RANKS] else ""
        (found,) = (
            thing for thing, line in facts.items() if line.startswith(verb) and (not wanted or f", {wanted}" in line)
        )
        return found
    line = facts[name]
    if "bounce" in question:
        bounced = re.search(r", (\w+) times", line)
        return bounced[1] if bounced else COUNTS[0]
    for ask, pattern in (
        ("before it turns", r", (\w+) before"),
        ("after it turns", r", (\w+) after"),
        ("which way", r"^moves (\w+) "),
        ("swap places", r" with (.+)$"),
        ("start?", r", starts ([\w ]+)"),
        ("end?", r", ends ([\w ]+)"),
        (" do?", rf"^({'|'.join(VERBS.values())}) "),
    ):
        if ask in question:
            return re.search(pattern, line)[1]  # type: ignore[index]
    raise AssertionError(question)
