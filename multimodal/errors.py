"""Errors that people see: one line, exit status 2, nothing half-written."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from textwrap import shorten


class UserError(Exception):
    """Something the user can put right. The message names what was found, where, and what was expected, on one line."""


def up_to_ten(faults: Sequence[str]) -> str:
    """Faults for a message, in order: the first ten, and how many more there are."""
    more = f" and {len(faults) - 10} more" if len(faults) > 10 else ""
    return "; ".join(faults[:10]) + more


@contextmanager
def reported_as(problem: str, *, expected: str) -> Iterator[None]:
    """Within, what a library raises on files or settings that somebody gave becomes a `UserError`: the problem, the
    library's own words in brackets, and `expected`, as in "expected a folder of transformers".
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # no JSON, no such file, sizes that contradict each other: each has a class of its own
        said = repr(error) if isinstance(error, LookupError) else str(error) or type(error).__name__
        raise UserError(f"{problem} ({shorten(said, 300, placeholder=' ...')}); {expected}") from error


def _say(sentence: str) -> None:
    """One line on stderr, also where a library's own sentence within it has several."""
    print(f"error: {' '.join(sentence.split())}", file=sys.stderr)


def run_cli(main: Callable[[], None]) -> None:
    """Run a script's `main`: a `UserError` becomes one line on stderr and exit status 2, Ctrl-C exit status 130."""
    try:
        main()
    except UserError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:
        # Full disk, missing permission: the operating system's own sentence with the path is the clearest.
        where = f": {error.filename}" if error.filename else ""
        _say(f"{error.strerror or error}{where}")
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was saved is intact (a training goes on with --resume)", file=sys.stderr)
        sys.exit(130)
