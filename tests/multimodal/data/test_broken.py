"""Broken media: each counted once, the first ones named, or the end of the run."""

import logging

import pytest

from multimodal.data.broken import WARN_BROKEN, BrokenMedia
from multimodal.errors import UserError


def test_each_is_counted_once_and_the_first_are_named(caplog: pytest.LogCaptureFixture) -> None:
    broken = BrokenMedia("clips", on_error="skip")
    with caplog.at_level(logging.WARNING):
        for number in (*range(WARN_BROKEN + 2), 0):
            broken.note(f"clip{number}", UserError(f"clip{number}: no"))
    assert len(broken) == WARN_BROKEN + 2 and len(caplog.records) == WARN_BROKEN + 1
    assert "clip0" in caplog.text and "more broken clips are counted" in caplog.text


def test_or_the_first_one_ends_the_run() -> None:
    with pytest.raises(UserError, match="clip0: no"):
        BrokenMedia("clips", on_error="fail").note("clip0", UserError("clip0: no"))
