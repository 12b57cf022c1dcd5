"""Uniform sampling by time: exact, never a frame twice, all frames where there are few."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from multimodal.errors import UserError
from vision.clip_sampling import Timeline


def even(frames: int, rate: int = 25) -> Timeline:
    return Timeline([Fraction(i, rate) for i in range(frames)], Fraction(frames, rate))


def test_the_frames_at_the_centres_of_equal_intervals() -> None:
    assert even(40).shown(4) == [5, 15, 25, 35]
    assert even(40).shown(1) == [20]
    assert even(30).shown(4) == [3, 11, 18, 26]
    # A centre at the very moment of a change, where rounding would go either way: the new frame.
    assert even(6, rate=30).shown(3) == [1, 3, 5]


@pytest.mark.parametrize("count", [7, 8, 100])
def test_a_clip_of_few_frames_gives_each_once(count: int) -> None:
    assert even(7).shown(count) == list(range(7))
    uneven = Timeline([Fraction(0), Fraction(1, 1000), Fraction(5)], Fraction(6))
    assert uneven.shown(count) == [0, 1, 2]


def test_a_frame_shown_for_long_is_taken_once() -> None:
    # Shown for 1, 8 and 1 seconds, then three short ones.
    starts = [Fraction(t) for t in (0, 1, 9, 10, 11, 12)]
    assert Timeline(starts, Fraction(13)).shown(5) == [1, 2, 4]  # at 1.3, 3.9, 6.5, 9.1 and 11.7


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 20), st.integers(-30, 30)
)
def test_by_the_definition(gaps: list[int], last: int, count: int, first: int) -> None:
    starts = [Fraction(first + sum(gaps[:i]), 7) for i in range(len(gaps))]
    timeline = Timeline(starts, starts[-1] + Fraction(last, 7))
    shown = timeline.shown(count)
    assert shown == sorted(set(shown)) and 1 <= len(shown) <= max(count, 1)
    if len(starts) <= count:
        assert len(shown) == len(starts)
    else:
        span = timeline.end - starts[0]
        centres = [starts[0] + span * (k + Fraction(1, 2)) / count for k in range(count)]
        assert shown == sorted({max(i for i, start in enumerate(starts) if start <= centre) for centre in centres})


def test_no_frames_asked_is_refused() -> None:
    with pytest.raises(UserError, match="0 frames of a clip, expected 1 or more"):
        even(5).shown(0)


def test_times_count_from_the_first_frame_and_positions_are_their_share() -> None:
    pictures = {i: Image.new("RGB", (4, 4), (i, 0, 0)) for i in (3, 1)}
    timeline = Timeline([Fraction(i - 2, 10) for i in range(5)], Fraction(3, 10))
    clip = timeline.clip(pictures, note="odd")
    assert clip.seconds == pytest.approx((0.1, 0.3)) and clip.duration == pytest.approx(0.5)
    assert clip.positions == pytest.approx((0.2, 0.6)) and clip.note == "odd"
    assert [frame.getpixel((0, 0)) for frame in clip.frames] == [(1, 0, 0), (3, 0, 0)]
    backwards = clip.reversed()
    assert backwards.frames == clip.frames[::-1] and backwards.positions == clip.positions
    assert Timeline([Fraction(0)], Fraction(0)).clip({0: pictures[1]}).positions == (0.0,)
