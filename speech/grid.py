"""The GRID corpus: sentences of six words, spelt by the names of its clips and aligned word by word.

`bbaf3s` is "bin blue at f three soon": command, colour, preposition, letter, digit, adverb. An alignment
(`bbaf3s.align`) has lines of start, end (in 1/25,000 s or frames) and word, with `sil` and `sp` between the words.
"""

import re
from pathlib import Path

from multimodal.data.grid_grammar import SLOTS
from multimodal.data.tables import read_text
from multimodal.errors import UserError

SILENCES = ("sil", "sp")
_NAME = re.compile(r"([blps])([bgrw])([abiw])([a-vx-z])([z1-9])([anps])")


def is_grid_name(name: str) -> bool:
    """Whether a clip of that name (without its ending) says one of the sentences."""
    return _NAME.fullmatch(name) is not None


def grid_sentence(name: str) -> str:
    """What the clip of that name says.

    Raises:
        UserError: no name of the corpus.

    Example:
        >>> grid_sentence("bbaf3s")
        'bin blue at f three soon'
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name}: not a clip of GRID; expected a name such as bbaf3s")
    codes = match.groups()
    codes = (*codes[:4], SLOTS["digit"][int(codes[4].replace("z", "0"))], codes[5])
    words = (
        next(word for word in group if word.startswith(code)) for group, code in zip(SLOTS.values(), codes, strict=True)
    )
    return " ".join(words)


def read_align(path: Path) -> str:
    """The words of an alignment.

    Raises:
        UserError: it cannot be read, or a line has no three columns.
    """
    words = []
    for number, line in enumerate(read_text(path, expected="expected an alignment").splitlines(), start=1):
        columns = line.split()
        if columns and len(columns) != 3:
            raise UserError(f"{path}, line {number}: found {line[:40]!r}; expected start, end and word")
        words += [column for column in columns[2:] if column not in SILENCES]
    return " ".join(words)
