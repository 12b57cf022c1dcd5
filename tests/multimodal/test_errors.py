"""What a script says and returns when something goes wrong."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from multimodal.errors import UserError, reported_as, run_cli


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def ended(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit status and stderr of a script that must end early and say nothing on stdout."""
    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    out, err = capsys.readouterr()
    assert out == ""
    return stopped.value.code, err


def test_a_script_without_errors_returns(capsys: pytest.CaptureFixture[str]) -> None:
    run_cli(lambda: print("done"))
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize(
    "message", ["cat.jpg: found text, expected a picture", "the hub said:\n  no\n\nand again no\n"]
)
def test_a_user_error_is_one_line_and_status_2(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = ended(raising(UserError(message)), capsys)
    assert status == 2
    assert err == f"error: {' '.join(message.split())}\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError("nope"), "KeyError('nope')"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (OSError("long " * 200), "long long"),
    ],
)
def test_what_a_library_raises_is_one_line_in_brackets(error: Exception, said: str) -> None:
    with pytest.raises(UserError) as caught, reported_as("a.json: cannot be read", expected="expected JSON"):
        raise error
    message = str(caught.value)
    assert message.startswith(f"a.json: cannot be read ({said}") and message.endswith("); expected JSON")
    assert "\n" not in message and len(message) < 400 and caught.value.__cause__ is error


@pytest.mark.parametrize("error", [UserError("said already"), KeyboardInterrupt()])
def test_what_is_said_already_stays_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, reported_as("problem", expected="expected more"):
        raise error
    assert caught.value is error


def test_a_full_disk_is_one_line_with_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/mine/log.jsonl")
    status, err = ended(raising(full), capsys)
    assert status == 2
    assert err == f"error: {os.strerror(errno.ENOSPC)}: runs/mine/log.jsonl\n"


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "there is none.txt"
    status, err = ended(lambda: print(missing.read_text()), capsys)
    assert status == 2
    assert err.count("\n") == 1 and str(missing) in err


def test_a_librarys_own_os_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, err = ended(raising(OSError("no connection.\nCheck the network.")), capsys)
    assert (status, err) == (2, "error: no connection. Check the network.\n")


def test_ctrl_c_is_one_line_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    status, err = ended(raising(KeyboardInterrupt()), capsys)
    assert status == 130
    assert err.count("\n") == 1 and "Traceback" not in err


def test_a_defect_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_cli(raising(ZeroDivisionError()))
