"""Tables and manifests, whatever the media: cells by column, and a line number for what is wrong."""

from pathlib import Path

import pytest

from multimodal.data.tables import (
    hashed_split,
    is_all_of_split,
    manifest_lines,
    manifest_texts,
    read_table,
    split_names,
)
from multimodal.errors import UserError

PATH = Path("t.csv")


def test_cells_come_by_column_and_free_text_keeps_its_delimiters() -> None:
    table = 'Clip,extra,Words\na.wav,1,"one, ""two"""\n\nb.wav,2,three\n'
    assert read_table(PATH, table, required=("clip", "words"), optional=("split",)) == [
        (2, {"clip": "a.wav", "words": 'one, "two"'}),
        (4, {"clip": "b.wav", "words": "three"}),
    ]
    assert (
        read_table(PATH, 'clip,words\na,5" and 6", or so\n', required=("clip", "words"))[0][1]["words"][-6:] == " or so"
    )
    assert read_table(PATH, "clip\twords\na\tone, two\n", required=("clip", "words"))[0][1]["words"] == "one, two"


def test_what_is_wrong_is_said_with_its_line() -> None:
    for table, message in {
        "": r"t\.csv: empty; expected a table with the columns clip and words",
        "clip,text\n": "no column 'words'; columns found: clip, text",
        "clip,words,more\na\n": r"line 2: 1 cells; expected 3 \(clip, words, more\)",
    }.items():
        with pytest.raises(UserError, match=message):
            read_table(PATH, table, required=("clip", "words"))


def test_manifests_are_objects_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text('{"a": ["x ", ""], "b": 3}\n\n{"c": "y"}\n')
    (_, first), (line, second) = manifest_lines(file, expected="expected a manifest")
    assert line == 3 and manifest_texts(first, "m", "c", "a") == ("x",) and manifest_texts(second, "m", "a") == ()
    with pytest.raises(UserError, match="m: 'b' is '3'; expected a text or a list of texts"):
        manifest_texts(first, "m", "b")
    file.write_text("[1]\n")
    with pytest.raises(UserError, match="line 1: found '\\[1\\]'; expected a JSON object"):
        list(manifest_lines(file, expected=""))
    with pytest.raises(UserError, match="expected a manifest"):
        list(manifest_lines(tmp_path / "none", expected="expected a manifest"))


def test_splits_by_any_of_their_names_or_by_name_of_the_medium() -> None:
    assert split_names("val")[0] == "val" and set(split_names("val")) == set(split_names("dev"))
    shares = [hashed_split(f"{i}.wav") for i in range(2000)]
    assert 0.87 < shares.count("train") / 2000 < 0.93 and set(shares) == {"train", "dev", "test"}


def test_a_file_named_after_a_split_is_all_of_it_and_nothing_of_another() -> None:
    train = Path("a/training.tsv")
    assert is_all_of_split(train, "train", declared=False) and is_all_of_split(train, "train", declared=True)
    assert not is_all_of_split(train, None, declared=False) and not is_all_of_split(train, "dev", declared=True)
    assert not is_all_of_split(Path("talks.tsv"), "dev", declared=False)
    assert is_all_of_split(Path("val_qa.json"), "dev", named_after="val", declared=False)
    with pytest.raises(UserError, match=r"a/training\.tsv: named after split 'training'; expected a table for 'dev'"):
        is_all_of_split(train, "dev", declared=False)
