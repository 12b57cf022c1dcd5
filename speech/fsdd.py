"""The Free Spoken Digit Dataset in its public layout, `recordings/{digit}_{speaker}_{take}.flac` (or wav), and digits
in a row made of it.

Official split: takes 0 to 4 are the test, the others train. "dev" is takes 5 to 7 and "fit" the rest of train, to
choose settings by. With a speaker held out, train is all takes of the others, test all of that speaker's.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from multimodal.errors import UserError
from speech.spoken_texts import in_words
from speech.utterance import FileSound, JoinedSounds, Utterance

TAKES = {"train": range(5, 1000), "fit": range(8, 1000), "dev": range(5, 8), "test": range(5)}
"""Takes of each split."""
GAP_SECONDS = (0.05, 0.35)
_NAME = re.compile(r"(\d)_([a-zA-Z]+)_(\d+)\.(?:wav|flac)")


def is_fsdd(folder: Path) -> bool:
    """Whether a folder has that layout."""
    return (folder / "recordings").is_dir() and any(map(_NAME.fullmatch, _names(folder)))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "recordings").iterdir())


def read_fsdd(folder: Path, *, split: str, speaker: str = "") -> list[Utterance]:
    """Single digits of a split.

    Args:
        speaker: held out of every split but "test", which is then this speaker alone, in all takes.

    Raises:
        UserError: another split or speaker.
    """
    if split not in TAKES:
        raise UserError(f"{folder}: split {split!r}; expected one of {', '.join(TAKES)}")
    found = [match for match in map(_NAME.fullmatch, _names(folder)) if match]
    speakers = sorted({match[2] for match in found})
    if speaker and speaker not in speakers:
        raise UserError(f"{folder}: no speaker {speaker!r}; expected one of {', '.join(speakers)}")
    if speaker:
        found = [match for match in found if (match[2] == speaker) == (split == "test")]
    # Without a speaker held out the takes decide; with one they do so only between fit and dev.
    takes = TAKES[split] if not speaker or split in ("fit", "dev") else range(1000)
    return [
        Utterance(
            sound=FileSound(folder / "recordings" / match[0]),
            text=in_words(int(match[1])),
            id=match[0],
            speaker=match[2],
        )
        for match in found
        if int(match[3]) in takes
    ]


def connected_digits(
    singles: Sequence[Utterance], *, count: int, seed: int, digits: tuple[int, int] = (3, 6)
) -> list[Utterance]:
    """`count` utterances of `digits[0]` to `digits[1]` single ones of one speaker, with short random pauses.

    Raises:
        UserError: there is nothing to join, or the numbers are no range.
    """
    if not singles or not 1 <= digits[0] <= digits[1]:
        raise UserError(f"{digits[0]} to {digits[1]} of {len(singles)} digits in a row; expected 1 or more, rising")
    by_speaker: defaultdict[str, list[Utterance]] = defaultdict(list)
    for single in singles:
        by_speaker[single.speaker].append(single)
    speakers = sorted(by_speaker)
    made = []
    for number in range(count):
        rng = random.Random(f"digits/{seed}/{number}")
        speaker = rng.choice(speakers)
        parts = rng.choices(by_speaker[speaker], k=rng.randint(*digits))
        gaps = tuple(rng.uniform(*GAP_SECONDS) for _ in parts[1:])
        sound = JoinedSounds(tuple(part.sound for part in parts), gaps)
        text = " ".join(part.text for part in parts)
        made.append(Utterance(sound=sound, text=text, id=f"digits {seed}/{number}", speaker=speaker))
    return made
