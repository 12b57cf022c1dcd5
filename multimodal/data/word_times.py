"""When each word of a recording is said: a table of id, word, start and end, as forced alignment makes it."""

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from multimodal.data.tables import read_text, table_cells
from multimodal.errors import UserError

WORD_TIMES = "word_times.tsv"
WordTimes = dict[str, list[tuple[str, float, float]]]
"""Words with start and end in seconds, in order, by the id of their recording."""


def read_word_times(path: Path, *, words: Collection[str] | None = None) -> WordTimes:
    """Read a table with the columns id, word, start and end (seconds), whose first line is their names.

    Args:
        words: that are known; None: any.

    Raises:
        UserError: no such file, a line that is not of four cells with numbers, or a word that is not known.
    """
    times: WordTimes = defaultdict(list)
    for line, cells in table_cells(read_text(path, expected="expected a table of word times"))[1:]:
        try:
            name, word, start, end = (cell.strip() for cell in cells)
            if words is not None and word not in words:
                raise ValueError
            times[name].append((word, float(start), float(end)))
        except ValueError:
            raise UserError(f"{path}, line {line}: found {cells}; expected id, a known word, start and end") from None
    return times
