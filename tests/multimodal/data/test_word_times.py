"""Tables of word times: read, or refused in one line."""

from pathlib import Path

import pytest

from multimodal.data.word_times import read_word_times
from multimodal.errors import UserError

HEADER = "id\tword\tstart_s\tend_s\n"


def test_words_come_in_order_by_recording(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(f"{HEADER}a\tbin\t0.1\t0.5\nb\tset\t0\t1\na\tblue\t0.5\t0.75\n")
    assert read_word_times(tmp_path / "t.tsv", words=("bin", "blue", "set")) == {
        "a": [("bin", 0.1, 0.5), ("blue", 0.5, 0.75)],
        "b": [("set", 0.0, 1.0)],
    }


@pytest.mark.parametrize(
    "line", ["a\tbin\t0", "a\tbin\t0\tx", "a\tcat\t0\t1", "a\tbin\t1\t0.5", "a\tbin\t-1\t2", "a\tbin\t0\tnan"]
)
def test_bad_times_are_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "t.tsv").write_text(f"{HEADER}{line}\n")
    with pytest.raises(UserError, match=r"t\.tsv, line 2: .*expected id, a known word, start and a later end"):
        read_word_times(tmp_path / "t.tsv", words=("bin",))
