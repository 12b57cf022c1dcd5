"""What is said about a rendered scene: captions, questions with answers, a description in plain words, a score.

Few words, lower case, several wordings. The inverse of a caption, `named_objects`, gives the metric `object_f1`.
Questions are unambiguous, and their answers follow from the scene alone.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from vision.scenes import ALL_PAIRS, COLOURS, DIGITS, SHAPES, TRAIN_PAIRS, Pair, Scene, SceneObject

NUMBERS = ("zero", "one", "two", "three", "four")
QuestionAnswer = tuple[str, str]

_WHERE = {"top": "at the top", "bottom": "at the bottom", "left": "on the left", "right": "on the right"}


def caption(scene: Scene, rng: random.Random) -> str:
    """Name every object's colour and shape once (with counts), and sometimes sizes, positions, a relation."""
    sized = rng.random() < 0.5
    style = rng.choice(("plain", "plain", "places", "relation"))
    groups: dict[str, list[SceneObject]] = {}
    for thing in rng.sample(scene.objects, len(scene.objects)):
        groups.setdefault(_name(thing, sized=sized), []).append(thing)
    # Single objects first: in "a star on the left and two circles" the place belongs to the star alone.
    ordered = sorted(groups.items(), key=lambda group: len(group[1]) > 1)

    related = _related_pair(scene, rng) if style == "relation" else None
    if related and len(ordered) == 2:
        first, relation, second = related
        names = (_name(first, sized=sized), _name(second, sized=sized))
        sentence = f"{_counted(names[0], 1)} is {relation} {_counted(names[1], 1)}"
    else:
        phrases = []
        for name, things in ordered:
            place = f" {_where(things[0])}" if style == "places" and len(things) == 1 else ""
            phrases.append(_counted(name, len(things)) + place)
        are = "there are " if len(ordered[0][1]) > 1 else "there is "
        sentence = rng.choice(("", "", are, "the picture shows ")) + _joined(phrases)
    tail = f". the {_name(related[0])} is {related[1]} the {_name(related[2])}" if related and len(ordered) > 2 else ""
    if scene.text is None:
        return f"{sentence}{tail}."
    written = _text_noun(scene.text)
    if not tail and not related and rng.random() < 0.5:
        return f"{sentence} with {written} {scene.text_place}."
    return f"{sentence}{tail}. {written} is written {scene.text_place}."


def scene_in_words(scene: Scene, rng: random.Random) -> str:
    """Say everything the scene shows, in one of several wordings: captions and all answers follow from it."""
    form = rng.randrange(3)
    parts = []
    for thing in rng.sample(scene.objects, len(scene.objects)):
        name = _name(thing, sized=True)
        if form == 0:
            parts.append(f"{name} {_where(thing)}")
        elif form == 1:
            parts.append(f"{thing.position}: {name}")
        else:
            parts.append(f"{_counted(name, 1)} {_where(thing)}")
    if scene.text is not None:
        parts.insert(rng.randrange(len(parts) + 1), f"{_text_noun(scene.text)} {scene.text_place}")
    return ("scene: " + "; ".join(parts)) if form < 2 else ("the scene has " + ", ".join(parts)) + "."


def inventory(scene: Scene) -> str:
    """Everything the scene shows in one wording of `scene_in_words` and in reading order: each word follows from the
    picture and the words before it, and none is left to chance.
    """
    things = sorted(scene.objects, key=lambda thing: (thing.row, thing.column))
    parts = [f"{thing.position}: {_name(thing, sized=True)}" for thing in things]
    if scene.text is not None:
        parts.insert(0 if scene.text_place == "above" else len(parts), f"{_text_noun(scene.text)} {scene.text_place}")
    return "scene: " + "; ".join(parts)


def named_objects(text: str) -> Counter[Pair]:
    """Count the (colour, shape) pairs that a caption names. "the red star" points back and adds no second one."""
    found: Counter[Pair] = Counter()
    for determiner, colour, shape in _NAMED.findall(text.lower()):
        pair = (colour, shape)
        if determiner == "the":
            found[pair] = max(found[pair], 1)
        else:
            found[pair] += NUMBERS.index(determiner) if determiner in NUMBERS else 1
    return +found


def object_f1(predictions: Sequence[str], scenes: Sequence[Scene]) -> float:
    """Micro F1 between the sets of (colour, shape) pairs that the predicted captions name and those in the scenes."""
    right = total = 0
    for prediction, scene in zip(predictions, scenes, strict=True):
        named = set(named_objects(prediction))
        right += len(named & scene.pairs)
        total += len(named) + len(scene.pairs)
    return 2 * right / total if total else 0.0


def question_answer(scene: Scene, rng: random.Random, *, kinds: Iterable[str] | None = None) -> QuestionAnswer:
    """Draw a question with its answer: first a kind that the scene allows, then an answer, each equally likely.

    `kinds` narrows the choice to some of `KINDS`; "count" can be asked about every scene.

    Raises:
        ValueError: the scene allows a question of none of `kinds`.
    """
    possible = questions_by_kind(scene)
    wanted = [kind for kind in (KINDS if kinds is None else kinds) if kind in possible]
    if not wanted:
        raise ValueError(f"no question of kinds {kinds} can be asked about this scene, only of {sorted(possible)}")
    asked = possible[rng.choice(wanted)]
    answer = rng.choice(sorted({answer for _, answer in asked}))
    return rng.choice([question for question in asked if question[1] == answer])


def questions(scene: Scene) -> list[QuestionAnswer]:
    """All questions of `questions_by_kind`, in its order."""
    return [question for asked in questions_by_kind(scene).values() for question in asked]


def questions_by_kind(scene: Scene) -> dict[str, list[QuestionAnswer]]:
    """(question, answer) pairs by kind (`KINDS`); kinds that the scene does not allow are absent. A pure function."""
    rng = random.Random(repr(scene))
    asked = {kind: ask(scene, rng) for kind, ask in _ASK.items()}
    return {kind: found for kind, found in asked.items() if found}


def _ask_colour(scene: Scene, _: random.Random) -> list[QuestionAnswer]:
    found = []
    for shape in SHAPES:
        things = [thing for thing in scene.objects if thing.shape == shape]
        colours = {thing.colour for thing in things}
        if "" in colours:
            continue
        if len(things) == 1:
            found.append((f"what colour is the {shape}?", things[0].colour))
        elif len(colours) == 1:
            found.append((f"what colour are the {_plural(shape)}?", things[0].colour))
        else:
            for thing in things:
                if sum(other.size == thing.size for other in things) == 1:
                    found.append((f"what colour is the {thing.size} {shape}?", thing.colour))
    return found


def _ask_shape(scene: Scene, _: random.Random) -> list[QuestionAnswer]:
    found = []
    for colour in COLOURS:
        things = [thing for thing in scene.objects if thing.colour == colour]
        if any(not thing.shape for thing in things):
            continue
        for thing in things:
            if len(things) == 1:
                found.append((f"what shape is the {colour} object?", thing.shape))
            elif sum(other.size == thing.size for other in things) == 1:
                found.append((f"what shape is the {thing.size} {colour} object?", thing.shape))
    return found


def _ask_count(scene: Scene, rng: random.Random) -> list[QuestionAnswer]:
    shapes = Counter(thing.shape for thing in scene.objects if thing.shape)
    colours = Counter(thing.colour for thing in scene.objects if thing.colour)
    pairs = Counter(thing.pair for thing in scene.objects if all(thing.pair))
    counted = [(f"{_plural(shape)}", count) for shape, count in shapes.items()]
    counted += [(f"{colour} objects", count) for colour, count in colours.items()]
    counted += [(f"{colour} {_plural(shape)}", count) for (colour, shape), count in pairs.items()]
    counted += [("objects", len(scene.objects))]
    absent_pair = rng.choice(_absent_pairs(scene))
    counted += [
        (_plural(rng.choice([shape for shape in SHAPES if shape not in shapes])), 0),
        (f"{rng.choice([colour for colour in COLOURS if colour not in colours])} objects", 0),
        (f"{absent_pair[0]} {_plural(absent_pair[1])}", 0),
    ]
    return [(f"how many {what} are there?", NUMBERS[count]) for what, count in counted]


def _ask_exists(scene: Scene, rng: random.Random) -> list[QuestionAnswer]:
    present = sorted(pair for pair in scene.pairs if all(pair))
    absent = rng.sample(_absent_pairs(scene), len(present))
    named = [(pair, "yes") for pair in present] + [(pair, "no") for pair in absent]
    return [(f"is there {_counted(f'{colour} {shape}', 1)}?", answer) for (colour, shape), answer in named]


def _absent_pairs(scene: Scene) -> list[Pair]:
    """Pairs not in the scene that share a colour or a shape with it, to ask about with the answer no.

    In training scenes never one that is held out: the answer would always be no, and would be learned.
    """
    colours, shapes = ({thing.colour for thing in scene.objects}, {thing.shape for thing in scene.objects})
    allowed = ALL_PAIRS if scene.held_out else TRAIN_PAIRS
    near = [pair for pair in allowed if pair[0] in colours or pair[1] in shapes]
    return [pair for pair in near if pair not in scene.pairs]


def _ask_position(scene: Scene, _: random.Random) -> list[QuestionAnswer]:
    return [(f"where is the {name}?", thing.position) for name, thing in _referable(scene)]


def _ask_size(scene: Scene, _: random.Random) -> list[QuestionAnswer]:
    return [(f"what size is the {name}?", thing.size) for name, thing in _referable(scene)]


def _ask_relation(scene: Scene, _: random.Random) -> list[QuestionAnswer]:
    found = []
    singles = _single(scene)
    for first in singles:
        for second in singles:
            for relation, opposite in _relations(first, second):
                found.append((f"is the {_name(first)} {relation} the {_name(second)}?", "yes"))
                found.append((f"is the {_name(first)} {opposite} the {_name(second)}?", "no"))
    return found


def _ask_text(scene: Scene, _: random.Random) -> list[QuestionAnswer]:
    if scene.text is None:
        return []
    return [(f"what {'number' if scene.text in DIGITS else 'word'} is written?", scene.text)]


_ASK: dict[str, Callable[[Scene, random.Random], list[QuestionAnswer]]] = {
    "colour": _ask_colour,
    "shape": _ask_shape,
    "count": _ask_count,
    "exists": _ask_exists,
    "position": _ask_position,
    "size": _ask_size,
    "relation": _ask_relation,
    "text": _ask_text,
}
KINDS = tuple(_ASK)


def _single(scene: Scene) -> list[SceneObject]:
    """Objects that their colour and shape tell from all others."""
    pairs = Counter(thing.pair for thing in scene.objects)
    return [thing for thing in scene.objects if pairs[thing.pair] == 1]


def _referable(scene: Scene) -> list[tuple[str, SceneObject]]:
    """Every short name (shape, or colour and shape) that points at exactly one object, with that object."""
    shapes = Counter(thing.shape for thing in scene.objects)
    by_shape = [(thing.shape, thing) for thing in scene.objects if thing.shape and shapes[thing.shape] == 1]
    return by_shape + [(_name(thing), thing) for thing in _single(scene)]


def _relations(first: SceneObject, second: SceneObject) -> list[tuple[str, str]]:
    """The relations of the first to the second object that hold, each with its opposite."""
    found = []
    if first.column != second.column:
        found.append(("left of", "right of") if first.column < second.column else ("right of", "left of"))
    if first.row != second.row:
        found.append(("above", "below") if first.row < second.row else ("below", "above"))
    return found


def _related_pair(scene: Scene, rng: random.Random) -> tuple[SceneObject, str, SceneObject] | None:
    singles = _single(scene)
    if len(singles) < 2:
        return None
    first, second = rng.sample(singles, 2)
    return first, rng.choice(_relations(first, second))[0], second


def _name(thing: SceneObject, *, sized: bool = False) -> str:
    return " ".join(word for word in (thing.size if sized else "", thing.colour, thing.shape or "object") if word)


def _plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def _counted(name: str, count: int) -> str:
    if count > 1:
        return f"{NUMBERS[count]} {_plural(name)}"
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _where(thing: SceneObject) -> str:
    return "in the centre" if thing.position == "centre" else _WHERE.get(thing.position, f"at the {thing.position}")


def _joined(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _text_noun(text: str) -> str:
    return f"the {'number' if text in DIGITS else 'word'} {text}"


_NAMED = re.compile(
    rf"(?:\b(a|an|the|{'|'.join(NUMBERS)}) )?(?:(?:small|large) )?"
    rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?\b"
)
