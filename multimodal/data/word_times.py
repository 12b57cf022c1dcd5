"""When each word of a recording is said, by a table as forced alignment makes it, and short pieces drawn from that.

A small encoder or adapter finds out which sound, or which movement of the lips, is which word from short pieces in
minutes; from whole sentences of fast speech it may learn nothing but which words there are.
"""

import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from multimodal.data.tables import read_text, table_cells
from multimodal.errors import UserError

WORD_TIMES = "word_times.tsv"
WordTimes = dict[str, list[tuple[str, float, float]]]
"""Words with start and end in seconds, in order, by the id of their recording."""

MOST_WORDS = 4
MARGIN_SECONDS = 0.04
"""More of the recording on either side: alignments are good to about a frame."""


@dataclass(frozen=True)
class Piece:
    """A few words in a row of a recording: which recording, the number of the first word, the words, from when to
    when in seconds, margins included."""

    name: str
    first: int
    words: tuple[str, ...]
    start: float
    end: float

    @property
    def label(self) -> str:
        """Which words of a recording they are."""
        return f"words {self.first + 1} to {self.first + len(self.words)}"


def draw_pieces(
    names: Sequence[str], times: WordTimes, *, count: int, seed: int, most: int = MOST_WORDS
) -> list[Piece]:
    """`count` pieces of one to `most` words, each of a recording drawn by the seed.

    Raises:
        UserError: none of the recordings has word times.
    """
    timed = [name for name in names if name in times]
    if not timed:
        raise UserError(f"cuttings: none of {len(names)} recordings has word times; expected their ids there")
    drawn = []
    for number in range(count):
        rng = random.Random(f"cutting/{seed}/{number}")
        name = rng.choice(timed)
        length = rng.randint(1, min(most, len(times[name])))
        first = rng.randrange(len(times[name]) - length + 1)
        words, starts, ends = zip(*times[name][first : first + length], strict=True)
        drawn.append(Piece(name, first, words, max(0.0, starts[0] - MARGIN_SECONDS), ends[-1] + MARGIN_SECONDS))
    return drawn


def read_word_times(path: Path, *, words: Collection[str] | None = None) -> WordTimes:
    """Read a table with the columns id, word, start and end (seconds), whose first line is their names.

    Args:
        words: that are known; None: any.

    Raises:
        UserError: no such file, a line that is not of four cells with rising numbers, or a word that is not known.
    """
    times: WordTimes = defaultdict(list)
    for line, cells in table_cells(read_text(path, expected="expected a table of word times"))[1:]:
        try:
            name, word, start, end = (cell.strip() for cell in cells)
            first, last = float(start), float(end)
            if (words is not None and word not in words) or not 0 <= first < last < float("inf"):
                raise ValueError
            times[name].append((word, first, last))
        except ValueError:
            raise UserError(
                f"{path}, line {line}: found {cells}; expected id, a known word, start and a later end in seconds"
            ) from None
    return times
