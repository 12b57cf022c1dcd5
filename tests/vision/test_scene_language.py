"""Language about scenes: captions invert, answers are true and unambiguous, nothing about held-out pairs leaks."""

import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from vision.scene_language import (
    KINDS,
    NUMBERS,
    caption,
    inventory,
    named_objects,
    object_f1,
    question_answer,
    questions,
    questions_by_kind,
    scene_in_words,
)
from vision.scenes import (
    COLOURS,
    DIGITS,
    HELD_OUT,
    POSITIONS,
    SHAPES,
    SIZES,
    WORDS,
    Scene,
    SceneMix,
    SceneObject,
    Split,
    sample_scene,
    scene_sample,
)

PLACES = [place for row in POSITIONS for place in row]


def many(split: Split, count: int) -> list[Scene]:
    rng = random.Random(3)
    return [sample_scene(rng, split=split) for _ in range(count)]


def test_named_objects_inverts_caption() -> None:
    rng = random.Random(0)
    for scene in many("any", 5000):
        sentence = caption(scene, rng)
        assert named_objects(sentence) == Counter(thing.pair for thing in scene.objects), sentence


def test_named_objects_reads_counts_and_definite_mentions() -> None:
    assert named_objects("Two small red crosses and an orange star. The orange star is above.") == Counter(
        {("red", "cross"): 2, ("orange", "star"): 1}
    )
    assert named_objects("the blue ring is here") == Counter({("blue", "ring"): 1})
    assert not named_objects("a red thing beside a circle, zero green stars, redstar")


def test_captions_vary_are_true_and_plain() -> None:
    rng = random.Random(0)
    for scene in many("any", 1500):
        sentence = caption(scene, rng)
        assert sentence.endswith(".") and not sentence.endswith("..")
        assert re.fullmatch(r"[a-z0-9 ,.]+", sentence)
        if scene.text is None:
            assert "word" not in sentence and "number" not in sentence
        else:
            noun = "number" if scene.text in DIGITS else "word"
            assert re.search(rf"the {noun} {scene.text} (is written )?{scene.text_place}\.", sentence)
        for first, relation, second in re.findall(
            r"(\w+ \w+) is (left of|right of|above|below) (?:an?|the) (?:small |large )?(\w+ \w+)", sentence
        ):
            assert holds(find(scene, first), relation, find(scene, second)), sentence
        for size in SIZES:
            assert size not in sentence or any(thing.size == size for thing in scene.objects)
    scene = many("any", 1)[0]
    assert len({caption(scene, rng) for _ in range(50)}) >= 5


def test_positions_in_captions_belong_to_their_object() -> None:
    rng = random.Random(0)
    seen = set()
    for scene in many("any", 3000):
        for name, place in re.findall(
            r"(\w+ \w+) (?:at|in|on) the ((?:top|bottom)? ?(?:left|right|centre)?)", caption(scene, rng)
        ):
            assert name.split()[1] in SHAPES, f"several objects share one place: {name}"
            seen.add(place.strip())
            assert place.strip() in {thing.position for thing in scene.objects if named(thing, name)}
    assert seen == set(PLACES)


def test_vocabulary_is_small() -> None:
    rng = random.Random(0)
    words: set[str] = set()
    for scene in many("any", 2000):
        for text in (caption(scene, rng), scene_in_words(scene, rng), *sum(questions(scene), ())):
            words.update(re.findall(r"\w+", text))
    assert len(words) <= 110


def test_scene_in_words_states_everything() -> None:
    rng = random.Random(0)
    for scene in many("any", 2000):
        text = rng.choice((inventory(scene), scene_in_words(scene, rng)))
        stated = []
        names = rf"({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
        places = "|".join(sorted(PLACES, key=len, reverse=True))
        for size, colour, shape, place in re.findall(rf"{names} (?:at|in|on) the ({places})", text):
            stated.append((size, colour, shape, place))
        for place, size, colour, shape in re.findall(rf"({places}): {names}", text):
            stated.append((size, colour, shape, place))
        assert Counter(stated) == Counter((t.size, t.colour, t.shape, t.position) for t in scene.objects), text
        written = re.findall(r"the (?:word|number) (\w+) (above|below)", text)
        assert written == ([] if scene.text is None else [(scene.text, scene.text_place)])


def test_an_inventory_goes_in_reading_order_and_leaves_nothing_to_chance() -> None:
    for scene in many("any", 300):
        text = inventory(scene)
        assert text == inventory(replace(scene, objects=scene.objects[::-1]))
        said = [part.split(": ")[0] for part in text.removeprefix("scene: ").split("; ") if ": " in part]
        assert said == sorted(said, key=PLACES.index) and len(said) == len(scene.objects)
        parts = text.removeprefix("scene: ").split("; ")
        at = {"above": 0, "below": -1}[scene.text_place]
        assert scene.text is None or parts[at].endswith(f" {scene.text} {scene.text_place}")


def test_answers_are_true_and_unambiguous() -> None:
    for scene in many("any", 600):
        asked = questions(scene)
        answers: dict[str, str] = {}
        for question, answer in asked:
            assert answers.setdefault(question, answer) == answer, question
            assert truth(scene, question) == answer, (scene, question, answer)
            assert 1 <= len(answer.split()) <= 3 and answer == answer.lower()


def test_every_kind_occurs_and_questions_are_a_pure_function() -> None:
    seen: Counter[str] = Counter()
    for scene in many("any", 300):
        found = questions_by_kind(scene)
        assert found == questions_by_kind(scene)
        assert {"count", "exists"} <= set(found) <= set(KINDS)
        assert all(found.values())
        seen.update(found.keys())
    assert set(seen) == set(KINDS)


def test_yes_and_no_are_balanced_and_guessing_does_not_pay() -> None:
    rng = random.Random(0)
    asked = [question_answer(scene, rng, kinds=("exists", "relation")) for scene in many("train", 3000)]
    assert 0.46 < sum(answer == "yes" for _, answer in asked) / len(asked) < 0.54
    for scene in many("any", 200):
        for kind in ("exists", "relation"):
            answers = Counter(answer for _, answer in questions_by_kind(scene).get(kind, []))
            assert answers["yes"] == answers["no"]

    # Best blind guess: the commonest answer to the same question.
    by_question: dict[str, Counter[str]] = {}
    for scene in many("train", 4000):
        question, answer = question_answer(scene, rng)
        by_question.setdefault(question, Counter())[answer] += 1
    test = [question_answer(scene, rng) for scene in many("held_out", 1500)]
    right = sum(q in by_question and by_question[q].most_common(1)[0][0] == answer for q, answer in test)
    assert right / len(test) < 0.45


def test_training_scenes_never_mention_held_out_pairs() -> None:
    # Else "is there a green circle?" would be answered no without a look.
    rng = random.Random(0)
    names = [f"{colour} {shape}" for colour, shape in HELD_OUT]
    for scene in many("train", 600):
        for text in (caption(scene, rng), scene_in_words(scene, rng), *sum(questions(scene), ())):
            assert not any(name in text for name in names), text


def test_question_answer_narrows_to_kinds_or_refuses() -> None:
    scene = Scene((SceneObject("star", "red", "small", 0, 0),))
    rng = random.Random(0)
    assert {question_answer(scene, rng, kinds=["position"])[1] for _ in range(9)} == {"top left"}
    with pytest.raises(ValueError, match="text"):
        question_answer(scene, rng, kinds=["text"])


def test_object_f1() -> None:
    scenes = many("any", 200)
    rng = random.Random(0)
    captions = [caption(scene, rng) for scene in scenes]
    assert object_f1(captions, scenes) == 1.0
    assert object_f1([""] * len(scenes), scenes) == 0.0
    assert object_f1(captions[1:] + captions[:1], scenes) < 0.3
    scene = Scene((SceneObject("star", "red", "small", 0, 0), SceneObject("ring", "blue", "small", 1, 0)))
    # One of two found, one named wrongly: precision 1/2, recall 1/2.
    assert object_f1(["a red star and a green ring."], [scene]) == pytest.approx(0.5)
    assert object_f1(["a red star."], [scene]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError):
        object_f1([], [scene])


# An independent reading of the questions, straight from the objects.


def named(thing: SceneObject, name: str) -> bool:
    """Whether every word of a name ("large red star", "red objects") fits the object."""
    words = [re.sub(r"^(cross)es$|(?<!s)s$", r"\1", word) for word in name.split()]
    return all(word in (thing.size, thing.colour, thing.shape, "object") for word in words)


def find(scene: Scene, name: str) -> SceneObject:
    found = [thing for thing in scene.objects if named(thing, name)]
    assert len(found) == 1, f"{name!r} is ambiguous"
    return found[0]


def holds(first: SceneObject, relation: str, second: SceneObject) -> bool:
    return {
        "left of": first.column < second.column,
        "right of": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }[relation]


def truth(scene: Scene, question: str) -> str:
    if match := re.fullmatch(r"how many (.+) are there\?", question):
        return NUMBERS[sum(named(thing, match[1]) for thing in scene.objects)]
    if match := re.fullmatch(r"is there an? (.+)\?", question):
        return "yes" if any(named(thing, match[1]) for thing in scene.objects) else "no"
    if match := re.fullmatch(r"is the (.+) (left of|right of|above|below) the (.+)\?", question):
        return "yes" if holds(find(scene, match[1]), match[2], find(scene, match[3])) else "no"
    if match := re.fullmatch(r"what colour are the (.+)\?", question):
        (colour,) = {thing.colour for thing in scene.objects if named(thing, match[1])}
        return colour
    if match := re.fullmatch(r"what (colour|shape|size) is the (.+)\?", question):
        return getattr(find(scene, match[2]), match[1])
    if match := re.fullmatch(r"where is the (.+)\?", question):
        return find(scene, match[1]).position
    match = re.fullmatch(r"what (word|number) is written\?", question)
    assert match, question
    assert scene.text in (WORDS if match[1] == "word" else DIGITS)
    return str(scene.text)


def test_what_has_no_name_is_not_named() -> None:
    for index in range(300):
        _, scene, rng = scene_sample(index, seed=1, split="train", size=8, mix=SceneMix(unnamed=1.0))
        asked = questions_by_kind(scene)
        assert not {"colour", "shape", "exists"} & set(asked)
        said = [caption(scene, rng), scene_in_words(scene, rng)]
        texts = [*said, *(text for kind in asked.values() for question in kind for text in question)]
        assert not any("  " in text or text.startswith(" ") for text in texts)
        for text in said:
            assert all((thing.shape or "object") in text and thing.colour in text for thing in scene.objects)
            words = {word.removesuffix("s") for word in re.findall(r"[a-z]+", text)}
            assert words & set(SHAPES) <= {thing.shape for thing in scene.objects}
            assert words & set(COLOURS) <= {thing.colour for thing in scene.objects}
