"""A made-up taxonomy, and the same as files in the format of WordNet's database.

thing
|- animal -- dog -- puppy
|        \\- cat
|- tool --- hammer
\\- pet ---- dog (a dog is an animal and a pet)
"""

import zipfile
from pathlib import Path

PARENTS: dict[str, tuple[str, ...]] = {
    "thing": (),
    "animal": ("thing",),
    "tool": ("thing",),
    "pet": ("thing",),
    "dog": ("animal", "pet"),
    "cat": ("animal",),
    "puppy": ("dog",),
    "hammer": ("tool",),
    "rex": ("dog",),  # an instance, not a kind
}
WORDS: dict[str, tuple[str, ...]] = {
    **{concept: (concept,) for concept in PARENTS},
    "hound": ("dog",),
    "hot_dog": ("hammer",),
    "boxer": ("dog", "tool"),
}
IRREGULAR = {"doggen": "dog"}
HEAD = "  1 WordNet 9.9 Copyright 2000 by nobody.  \n"


class MadeTaxonomy:
    """Concepts by name."""

    name = "made up"

    def senses(self, word: str) -> tuple[str, ...]:
        return WORDS.get(word, ())

    def parents(self, concept: str) -> tuple[str, ...]:
        return PARENTS[concept]


def write_wordnet(folder: Path) -> dict[str, int]:
    """Write the database; where each concept stands in it."""
    folder.mkdir(parents=True)
    words = {concept: [word for word, of in WORDS.items() if concept in of] for concept in PARENTS}
    places: dict[str, int] = {}
    at = len(HEAD)
    for concept in PARENTS:  # all places have eight digits, so lines are as long before they are known
        places[concept] = at
        at += len(_synset(concept, words[concept], dict.fromkeys(PARENTS, 0)))
    lines = [_synset(concept, words[concept], places) for concept in PARENTS]
    (folder / "data.noun").write_text(HEAD + "".join(lines))
    index = [
        f"{word} n {len(of)} 1 @ {len(of)} 0 {' '.join(f'{places[one]:08d}' for one in of)}  \n"
        for word, of in sorted(WORDS.items())
    ]
    (folder / "index.noun").write_text(HEAD + "".join(index))
    (folder / "noun.exc").write_text("".join(f"{form} {base}\n" for form, base in IRREGULAR.items()))
    return places


def _synset(concept: str, words: list[str], places: dict[str, int]) -> str:
    symbol = "@i" if concept == "rex" else "@"
    pointers = [f"{symbol} {places[parent]:08d} n 0000" for parent in PARENTS[concept]]
    pointers += [f"#m {places['thing']:08d} n 0000"]  # a member of, which is no kind of
    named = " ".join(f"{word} 0" for word in words)
    return f"{places[concept]:08d} 03 n {len(words):02x} {named} {len(pointers):03d} {' '.join(pointers)} | a @ b  \n"


def zip_wordnet(folder: Path, file: Path) -> None:
    """The database as NLTK keeps it: in a folder `wordnet` of a zip file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        for part in folder.iterdir():
            archive.write(part, f"wordnet/{part.name}")
