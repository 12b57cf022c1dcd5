"""Where somebody speaks, by energy alone, and where to cut a long recording.

A frame of 10 ms counts as active when it is clearly louder than the noise around it: the noise floor is the quietest
moment (0.1 s) within some seconds, so that it follows a recording whose noise changes. Energy cannot tell speech from
music or a slamming door; in doubt the rule keeps sound, for what is cut away is lost. The Llama 3 paper keeps stretches
whose voice-activity score is high (section 8.1 / spec B1) and recognises pieces of at most 60 s.

Legend: S samples, T frames of 10 ms.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from multimodal.errors import UserError

FRAMES_A_SECOND = 100


class Segment(NamedTuple):
    """Samples `start` .. `end - 1` of a waveform."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class VoiceActivity:
    """The rule's thresholds. Decibels are relative to full scale, a square wave of -1 and 1 being 0."""

    margin_db: float = 10.0
    """An active frame is so much louder than the noise floor."""
    quietest_db: float = -60.0
    """A frame below this is never active."""
    loudest_noise_db: float = -35.0
    """The noise floor is taken to be no higher: a clip without a pause is speech, not noise."""
    floor_seconds: float = 10.0
    """The noise floor is looked for so far on either side."""
    hangover_seconds: float = 0.2
    """Speech lasts so much longer on either side: weak beginnings and endings, short pauses within it."""
    shortest_seconds: float = 0.03
    """Shorter bursts are clicks."""

    def __post_init__(self) -> None:
        if min(self.floor_seconds, self.hangover_seconds, self.shortest_seconds, self.margin_db) < 0:
            raise UserError(f"voice activity: {self}, expected no negative margin or duration")


def speech_segments(waveform_S: Tensor, *, rate: int, rule: VoiceActivity | None = None) -> list[Segment]:
    """The stretches [start, end) of a mono waveform in which somebody speaks, in order and apart; none in silence."""
    rule = rule or VoiceActivity()
    hop, samples = _hop(rate), len(waveform_S)
    shortest, hangover = (round(s * FRAMES_A_SECOND) for s in (rule.shortest_seconds, rule.hangover_seconds))
    segments: list[Segment] = []
    if not samples:
        return segments
    for first, last in _runs(_active(_frame_power(waveform_S, rate), rule)):
        if last - first < shortest:
            continue
        start, end = max(0, first - hangover) * hop, min(samples, (last + hangover) * hop)
        if segments and start <= segments[-1].end:
            segments[-1] = Segment(segments[-1].start, end)
        else:
            segments.append(Segment(start, end))
    return segments


def split_at_pauses(
    waveform_S: Tensor, *, rate: int, longest_seconds: float, rule: VoiceActivity | None = None
) -> list[Segment]:
    """Pieces of a long recording, none longer than `longest_seconds`, for a model that takes no more at once.

    Together the pieces hold every sample of `speech_segments` exactly once; silence around them is left out. A piece
    ends at the longest pause before the limit (in the second half of what the limit allows, if there is one there, so
    that pieces are long), and in the quietest moment of that half where nobody pauses.

    Raises:
        UserError: `longest_seconds` is below 1.
    """
    if longest_seconds < 1:
        raise UserError(f"voice activity: pieces of at most {longest_seconds} s, expected a limit of 1 s or more")
    limit = int(longest_seconds * rate)
    rest, pieces = speech_segments(waveform_S, rate=rate, rule=rule), []
    while rest:
        start, soonest, latest = rest[0].start, rest[0].start + limit // 2, rest[0].start + limit
        pauses = [i for i, segment in enumerate(rest) if segment.end <= latest]
        if len(pauses) == len(rest):
            pieces.append(Segment(start, rest[-1].end))
            break
        if pauses:
            late = [i for i in pauses if rest[i].end >= soonest]
            last = max(late or pauses, key=lambda i: rest[i + 1].start - rest[i].end)
            pieces.append(Segment(start, rest[last].end))
            rest = rest[last + 1 :]
        else:
            cut = _quietest(waveform_S[soonest:latest], rate) + soonest
            pieces.append(Segment(start, cut))
            rest[0] = Segment(cut, rest[0].end)
    return pieces


def _active(power_T: Tensor, rule: VoiceActivity) -> Tensor:
    """bool [T]: frames that are clearly louder than the noise floor."""
    reach = round(rule.floor_seconds * FRAMES_A_SECOND)
    floor_T = -F.max_pool1d(-_decibels(_smooth(power_T))[None], 2 * reach + 1, stride=1, padding=reach)[0]
    threshold_T = (floor_T.clamp(max=rule.loudest_noise_db) + rule.margin_db).clamp(min=rule.quietest_db)
    return _decibels(power_T) > threshold_T


def _quietest(waveform_S: Tensor, rate: int) -> int:
    """The middle of the longest stretch that is about as quiet as the quietest moment, in samples."""
    level_T = _decibels(_smooth(_frame_power(waveform_S, rate)))
    first, last = max(_runs(level_T < level_T.min() + 3), key=lambda run: run[1] - run[0])
    return (first + last) // 2 * _hop(rate)


def _hop(rate: int) -> int:
    """Samples of a frame."""
    return rate // FRAMES_A_SECOND


def _frame_power(waveform_S: Tensor, rate: int) -> Tensor:
    """Mean square of each frame, float32 [T], about its mean: an offset of the recorder is no sound."""
    hop = _hop(rate)
    return F.pad(waveform_S.float(), (0, -len(waveform_S) % hop)).view(-1, hop).var(1, correction=0)


def _smooth(power_T: Tensor) -> Tensor:
    """The mean over 11 frames around each."""
    return F.avg_pool1d(power_T[None], 11, stride=1, padding=5, count_include_pad=False)[0]


def _decibels(power_T: Tensor) -> Tensor:
    return 10 * power_T.clamp(min=1e-12).log10()


def _runs(active_T: Tensor) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of every stretch of True."""
    edges = F.pad(active_T.to(torch.int8), (1, 1)).diff().nonzero().flatten().tolist()
    yield from zip(edges[::2], edges[1::2], strict=True)
