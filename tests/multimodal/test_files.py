"""A file that a user named: opened, or refused in one line that names it."""

import os
from pathlib import Path

import pytest

from multimodal.errors import UserError
from multimodal.files import new_folder, open_file, write_whole


def test_a_regular_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc")
    with open_file(path, expected="expected a sound") as file:
        assert file.read() == b"abc"


def test_anything_else_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "none": "no such file",
        ".": "a folder",
        "pipe": "not a regular file",
        "a\0b": "null",
        "x" * 300: "too long",
    }
    for name, match in cases.items():
        with pytest.raises(UserError, match=f"{match}.*; expected a sound$") as caught:
            open_file(tmp_path / name, expected="expected a sound")
        assert str(tmp_path) in str(caught.value)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    write_whole(file, "one")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "two \ud800")
    assert file.read_text() == "one" and list(file.parent.iterdir()) == [file]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "a"
    with pytest.raises(KeyError), new_folder(folder) as draft:
        (draft / "half").write_text("1")
        raise KeyError
    assert not list(folder.parent.iterdir())
    folder.mkdir()  # an empty one is as good as none
    with new_folder(folder) as draft:
        (draft / "whole").write_text("1")
        assert not list(folder.iterdir())
    assert list(tmp_path.rglob("*")) == [folder.parent, folder, folder / "whole"]
    with pytest.raises(UserError, match="expected a new folder"), new_folder(folder):
        pass


def test_an_empty_folder_that_somebody_stands_in_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with new_folder(Path(".")) as draft:
        (draft / "whole").write_text("1")
    assert list(tmp_path.rglob("*")) == [folder, folder / "whole"]
