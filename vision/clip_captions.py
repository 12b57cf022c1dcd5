"""What happens in a rendered clip, in words: the captions of video-text pairs.

Few words, lower case, one wording for each motion, like the questions of `vision.clip_language`. Objects are named in
random order, so that a caption says nothing about which one the clip was drawn for.
"""

import random

from vision.clip_scenes import DIRECTIONS, ClipScene, MovingObject
from vision.clip_ways import COUNTS, VERBS

CLIP_PROMPT = "Describe the video."


def clip_caption(scene: ClipScene, rng: random.Random) -> str:
    """One sentence an object, for instance "the red circle moves left. the blue star stays."; a function of both."""
    things = rng.sample(scene.objects, len(scene.objects))
    return " ".join(f"the {thing.name} {_verb(thing, scene)}." for thing in things)


def _verb(thing: MovingObject, scene: ClipScene) -> str:
    if thing.motion in DIRECTIONS:
        return f"moves {thing.motion}"
    if thing.motion == "bounce":
        return f"bounces {COUNTS[len(thing.way.track) - 2]} times"
    if thing.motion in VERBS:
        return VERBS[thing.motion]
    partner = {"hit": "pushed", "pushed": "hit", "swap": "swap"}.get(thing.motion)
    other = next((o.name for o in scene.objects if o is not thing and o.motion == partner), "other")
    return {
        "appear": "appears and vanishes",
        "swap": f"swaps places with the {other}",
        "hit": f"hits the {other}",
        "pushed": f"is hit by the {other}",
    }[thing.motion]
