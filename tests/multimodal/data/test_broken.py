"""Broken samples: skipped, counted once each, named at first, or the end."""

import logging

import pytest

from multimodal.data.broken import WARN_BROKEN, BrokenSamples
from multimodal.errors import UserError


def fail() -> int:
    raise UserError("a.wav: broken")


def test_broken_samples_are_counted_once_and_only_the_first_are_named(caplog: pytest.LogCaptureFixture) -> None:
    broken = BrokenSamples(what="recordings")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [broken.read(fail, id=str(i)) for i in range(9)] == [None] * 9
    assert broken.ids == set("012345678")
    named = [record for record in caplog.messages if "a.wav" in record]
    assert len(named) == WARN_BROKEN and "more broken recordings" in caplog.messages[-1]
    assert broken.read(lambda: 3, id="good") == 3


def test_or_end_the_run() -> None:
    with pytest.raises(UserError, match="broken"):
        BrokenSamples(on_error="fail").read(fail, id="0")
