"""Which frames of a clip are looked at: uniform sampling by time (Llama 3 paper, section 7.3 / spec A5.1).

Frame i is shown from `starts[i]` until the next one starts, the last one until `end`. To sample N frames uniformly, the
span from the first start to `end` is cut into N equal intervals, and the frame shown at the centre of each is taken (at
the very moment of a change: the new one). A frame that is shown at several centres, as in a recording that stood still,
is taken once, and a clip of at most N frames gives all of them: frames never repeat, so there may be fewer than N.
All this is exact arithmetic on the times as the file gives them, with constant and with variable frame rates.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from PIL import Image

from multimodal.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames of a clip, upright RGB, in the order in which they are shown."""

    frames: tuple[Image.Image, ...]
    seconds: tuple[float, ...]
    """When each frame starts to be shown, counted from the start of the clip's first frame."""
    duration: float
    """Seconds from the start of the first frame to the end of the last one, sampled or not; 0 for a still picture."""
    note: str = ""
    """What was wrong with a file that was read all the same; empty: nothing."""

    @property
    def positions(self) -> tuple[float, ...]:
        """Continuous time of each frame from 0 (start of the clip) towards 1 (its end)."""
        return tuple(second / self.duration if self.duration else 0.0 for second in self.seconds)

    def reversed(self) -> "Clip":
        """The control: at the same moments, the same frames in the opposite order."""
        return replace(self, frames=self.frames[::-1])


@dataclass(frozen=True)
class Timeline:
    """When the frames of a clip are shown, in seconds: `starts` never falls, `end` is not before the last start."""

    starts: Sequence[Fraction]
    end: Fraction

    def shown(self, count: int) -> list[int]:
        """Numbers of the frames that a uniform sample of `count` takes, rising, at most `count` (see above)."""
        if count < 1:
            raise UserError(f"{count} frames of a clip, expected 1 or more")
        if len(self.starts) <= count:
            return list(range(len(self.starts)))
        first, span = self.starts[0], self.end - self.starts[0]
        centres = (first + span * Fraction(2 * k + 1, 2 * count) for k in range(count))
        return list(dict.fromkeys(bisect_right(self.starts, centre) - 1 for centre in centres))

    def clip(self, frames: Mapping[int, Image.Image], *, note: str = "") -> Clip:
        """The clip made of some frames, by their numbers."""
        numbers = sorted(frames)
        first = self.starts[0]
        return Clip(
            frames=tuple(frames[number] for number in numbers),
            seconds=tuple(float(self.starts[number] - first) for number in numbers),
            duration=float(self.end - first),
            note=note,
        )
