"""WordNet's files: a made-up database says what it was made of, and it is found where people have it."""

from pathlib import Path

import pytest

from multimodal.errors import UserError
from multimodal.wordnet import PLACE, WordNet, find_wordnet
from multimodal.wups import Likeness
from tests.multimodal.made_wordnet import PARENTS, WORDS, MadeTaxonomy, write_wordnet, zip_wordnet


def test_the_files_say_what_they_were_made_of(tmp_path: Path) -> None:
    places = write_wordnet(tmp_path / "dict")
    found = WordNet(tmp_path / "dict")
    assert found.name == "WordNet 9.9"
    for concept, parents in PARENTS.items():
        assert found.parents(places[concept]) == tuple(places[parent] for parent in parents)
    for word, concepts in WORDS.items():
        assert found.senses(word) == tuple(places[concept] for concept in concepts)
    by_file, made = Likeness(found), Likeness(MadeTaxonomy())
    assert all(by_file.words(a, b) == made.words(a, b) for a in WORDS for b in WORDS)


def test_plurals_are_found_by_rule_and_by_list(tmp_path: Path) -> None:
    places = write_wordnet(tmp_path / "dict")
    found = WordNet(tmp_path / "dict")
    for form in ("dogs", "Dog", "doggen", "hound", "hounds"):
        assert found.senses(form) == (places["dog"],)
    assert found.senses("puppies") == (places["puppy"],) and found.senses("hot dogs") == (places["hammer"],)
    assert found.senses("unheard") == ()


def test_it_is_found_where_it_is_named_and_among_the_data_of_nltk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wordnet(tmp_path / "named")
    (tmp_path / "named" / "data.noun").write_text((tmp_path / "named" / "data.noun").read_text().replace("9.9", "7.7"))
    places = write_wordnet(tmp_path / "nltk" / "corpora" / "wordnet")
    zip_wordnet(tmp_path / "nltk" / "corpora" / "wordnet", tmp_path / "zipped" / "corpora" / "wordnet.zip")
    monkeypatch.setenv(PLACE, str(tmp_path / "named"))
    found = find_wordnet()
    assert found is not None and found.name == "WordNet 7.7" and find_wordnet() is found
    monkeypatch.delenv(PLACE)
    for folder in ("nltk", "zipped"):
        monkeypatch.setenv("NLTK_DATA", str(tmp_path / folder))
        found = find_wordnet()
        assert found is not None and found.name == "WordNet 9.9" and found.senses("cats") == (places["cat"],)


def test_a_named_folder_without_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLACE, str(tmp_path))
    with pytest.raises(UserError, match=r"index\.noun"):
        find_wordnet()
    for name in ("index.noun", "data.noun", "noun.exc"):
        (tmp_path / name).write_text("something\n")
    with pytest.raises(UserError, match=r"WordNet in .*; expected"):
        find_wordnet()
    (tmp_path / "wordnet.zip").write_text("no zip file")
    with pytest.raises(UserError, match=r"wordnet\.zip"):
        WordNet(tmp_path / "wordnet.zip")
