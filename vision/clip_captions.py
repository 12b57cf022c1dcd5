"""What happens in a rendered clip, in words: the captions of video-text pairs, and descriptions that say everything.

Few words, lower case, one wording for each motion, like the questions of `vision.clip_language`. Objects are named in
random or in alphabetical order, so that no text says which one the clip was drawn for.
"""

import random
from itertools import chain

from vision.clip_language import questions_by_kind
from vision.clip_scenes import DIRECTIONS, ClipScene, MovingObject
from vision.clip_ways import VERBS, bounces

CLIP_PROMPT = "Describe the video."
CLIP_DETAIL_PROMPT = "Describe everything in the video."


def clip_caption(scene: ClipScene, rng: random.Random) -> str:
    """One sentence an object, for instance "the red circle moves left. the blue star stays."; a function of both."""
    things = rng.sample(scene.objects, len(scene.objects))
    return " ".join(f"the {thing.name} {_verb(thing, scene)}." for thing in things)


def clip_inventory(scene: ClipScene) -> str:
    """Everything that can be asked about the clip (`questions_by_kind`), in alphabetical order, so that no word is left
    to chance: "clip: moves left red circle, starts top right, ends top left; stays black ring".

    What an object does stands directly before its colour: that is where pairs of both that training never shows are
    not denied (`multimodal.unseen_pairs`).
    """
    said = [[_motion(thing, scene)] for thing in scene.objects]
    asked = questions_by_kind(scene)
    for one in asked.get("direction", ()):
        if scene.objects[one.subject].motion == "turn":
            said[one.subject].append(f"{one.answer} {'before' if 'before' in one.question else 'after'}")
    for one in chain(asked.get("order", ()), asked.get("speed", ())):
        said[one.subject].append(one.question.removesuffix("?").split()[-1])
    for one in asked.get("place", ()):
        said[one.subject].append(f"{'starts' if one.question.endswith('start?') else 'ends'} {one.answer}")
    return "clip: " + "; ".join(sorted(", ".join(parts) for parts in said))


def _motion(thing: MovingObject, scene: ClipScene) -> str:
    if thing.motion in DIRECTIONS:
        return f"moves {thing.motion} {thing.name}"
    if thing.motion == "bounce":
        return f"bounces {thing.name}, {bounces(thing.way)} times"
    if thing.motion == "swap":
        return f"swaps {thing.name} with {_partner(thing, scene)}"
    verbs = VERBS | {"appear": "appears", "hit": "hits", "pushed": "is hit"}
    return f"{verbs[thing.motion]} {thing.name}"


def _partner(thing: MovingObject, scene: ClipScene) -> str:
    partner = {"hit": "pushed", "pushed": "hit", "swap": "swap"}.get(thing.motion)
    return next((o.name for o in scene.objects if o is not thing and o.motion == partner), "other")


def _verb(thing: MovingObject, scene: ClipScene) -> str:
    if thing.motion in DIRECTIONS:
        return f"moves {thing.motion}"
    if thing.motion == "bounce":
        return f"bounces {bounces(thing.way)} times"
    if thing.motion in VERBS:
        return VERBS[thing.motion]
    other = _partner(thing, scene)
    return {
        "appear": "appears and vanishes",
        "swap": f"swaps places with the {other}",
        "hit": f"hits the {other}",
        "pushed": f"is hit by the {other}",
    }[thing.motion]
