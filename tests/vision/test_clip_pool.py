"""Reading ahead: in order, a bounded number at once, errors with their source, nothing left running."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from multimodal.errors import UserError
from tests.vision.made_clips import write_clip
from vision.clip import read_clip
from vision.clip_pool import read_ahead


def test_results_keep_their_order_and_errors_their_source(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_text("broken")
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4", "a.mp4", "c.mp4", "a.mp4")]
    results = list(read_ahead(paths, partial(read_clip, count=3, threads=1), workers=2, ahead=3))
    assert [path for path, _ in results] == paths
    for path, clip in results:
        if path.name == "a.mp4":
            assert len(clip.result().frames) == 3
        else:
            with pytest.raises(UserError, match=path.name):
                clip.result()


def test_a_slow_source_is_waited_for_while_the_next_ones_are_read() -> None:
    started: list[int] = []
    others = threading.Event()

    def read(number: int) -> int:
        started.append(number)
        if number == 0:
            assert others.wait(10)  # released by its successor: they run at the same time
        elif number == 1:
            others.set()
        return number * 10

    assert [future.result() for _, future in read_ahead(range(4), read, workers=2, ahead=3)] == [0, 10, 20, 30]


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_never_more_than_asked_are_started_and_not_handed_over(ahead: int) -> None:
    taken = 0

    def sources() -> Iterator[int]:
        nonlocal taken
        for number in range(12):
            taken += 1
            yield number

    for handed, (source, future) in enumerate(read_ahead(sources(), lambda n: n, workers=3, ahead=ahead), start=1):
        assert source == future.result() == handed - 1
        assert taken - handed < ahead
    assert taken == 12


def test_leaving_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    results = read_ahead(range(100), lambda n: time.sleep(0.001), workers=4, ahead=8)
    next(results)
    results.close()  # pyright: ignore[reportAttributeAccessIssue] -- a generator
    assert threading.active_count() == before


def test_no_sources_and_no_workers() -> None:
    assert list(read_ahead([], str)) == []
    for wrong in ({"workers": 0}, {"ahead": 0}):
        with pytest.raises(ValueError, match="expected 1 or more"):
            next(read_ahead([1], str, **wrong))
