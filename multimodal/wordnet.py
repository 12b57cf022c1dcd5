"""WordNet's nouns as a taxonomy, read from its own database files where they are installed.

The files are those of Princeton's package (wndb(5WN)): `index.noun` gives the synsets of a word by their place in
`data.noun`, whose lines hold the words of a synset and pointers to others. NLTK's corpus is the same files, in a folder
or in a zip file, and so is Debian's package `wordnet-base`. As in the evaluation of Malinowski and Fritz, which WUPS
comes from, only nouns have senses.
"""

import functools
import os
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from multimodal.errors import UserError

PLACE = "WNSEARCHDIR"
"""The environment variable by which WordNet's own programs are told the folder."""
_FILES = ("index.noun", "data.noun", "noun.exc")
_HYPERNYM = (b"@", b"@i")  # a kind of, an instance of
_ENDINGS = {"s": "", "ses": "s", "xes": "x", "zes": "z", "ches": "ch", "shes": "sh", "men": "man", "ies": "y"}
"""Of plurals, and of what they are plurals (morphy(7WN))."""


class WordNet:
    """Nouns of a WordNet database; a concept is the place of its synset in `data.noun`.

    Args:
        place: a folder with `index.noun`, `data.noun` and `noun.exc`, or a zip file with a folder `wordnet`.

    Raises:
        UserError: one of the files is missing or is something else.
    """

    def __init__(self, place: Path) -> None:
        try:
            folder = zipfile.Path(place, "wordnet/") if place.suffix == ".zip" else place
            index, self._data, exceptions = ((folder / name).read_bytes() for name in _FILES)
            self._senses = dict(map(_index_line, _lines(index)))
            self._irregular = {form: bases for form, *bases in map(str.split, _lines(exceptions))}
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"WordNet in {place}: {error}; expected {', '.join(_FILES)}") from error
        version = re.search(rb"WordNet (\S+) Copyright", self._data[:4096])
        self.name = f"WordNet {version[1].decode()}" if version else "WordNet"

    def senses(self, word: str) -> tuple[int, ...]:
        """Synsets of a noun and of what it may be the plural of, none twice."""
        form = word.lower().replace(" ", "_")
        regular = (form.removesuffix(end) + base for end, base in _ENDINGS.items() if form.endswith(end))
        forms = [form, *self._irregular.get(form, regular)]
        return tuple(dict.fromkeys(place for one in forms for place in self._senses.get(one, ())))

    def parents(self, concept: int) -> tuple[int, ...]:
        """Synsets of which this one is a kind or an instance."""
        fields = self._data[concept : self._data.index(b"|", concept)].split()
        pointers = fields[4 + 2 * int(fields[3], 16) + 1 :]  # the words are counted in hexadecimal
        kinds = zip(pointers[0::4], pointers[1::4], strict=False)
        return tuple(int(place) for symbol, place in kinds if symbol in _HYPERNYM)


def _lines(content: bytes) -> Iterator[str]:
    """Lines of a file, without those of the licence at its head."""
    return (line for line in content.decode("latin-1").splitlines() if line and not line.startswith(" "))


def _index_line(line: str) -> tuple[str, tuple[int, ...]]:
    word, _, count, *rest = line.split()
    return word, tuple(map(int, rest[-int(count) :]))


def find_wordnet() -> WordNet | None:
    """The WordNet of this machine: in the folder named by the environment variable WNSEARCHDIR, among NLTK's data, or
    where Debian has it; None if there is none.

    Raises:
        UserError: there is none in the folder that WNSEARCHDIR names.
    """
    named = os.environ.get(PLACE)
    return _load(_places() if named is None else (named,), required=named is not None)


def _places() -> tuple[str, ...]:
    """Folders of WordNet, and zip files of it, in the order in which they are tried."""
    nltk = [*filter(None, os.environ.get("NLTK_DATA", "").split(os.pathsep)), str(Path.home() / "nltk_data")]
    nltk += [f"{root}/nltk_data" for root in (sys.prefix, f"{sys.prefix}/share", "/usr/share", "/usr/local/share")]
    corpora = (f"{root}/corpora/wordnet{kind}" for root in nltk for kind in ("", ".zip"))
    return (*corpora, "/usr/share/wordnet")


@functools.cache
def _load(places: tuple[str, ...], *, required: bool) -> WordNet | None:
    found = (place for place in map(Path, places) if (place if place.suffix == ".zip" else place / _FILES[0]).is_file())
    place = next(found, Path(places[0]) if required else None)
    return None if place is None else WordNet(place)
