"""Captions in every layout that people have, and one clear line for each way that they can be wrong."""

import json
import logging
import os
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from multimodal.data.tables import hashed_split
from multimodal.errors import UserError
from vision.caption_data import CaptionImages, read_captions, tidy_caption
from vision.caption_hub import read_hub
from vision.caption_tables import CaptionRecord, Columns
from vision.tiling import Augment, Tiling

DATA = Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def picture(path: Path, color: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 8), color).save(path)
    return path


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        picture(folder / name)


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def by_id(records: list[CaptionRecord]) -> dict[str, tuple[str, ...]]:
    return {record.id: record.captions for record in records}


def refused(source: Path | str, *words: str, **settings: object) -> None:
    with pytest.raises(UserError) as caught:
        read_captions(source, **settings)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(source), *words):
        assert word in message, message


# Layouts


def test_tsv_groups_lines_by_picture_and_ignores_other_columns(tmp_path: Path) -> None:
    pictures(tmp_path / "images", "a.png", "b.png")
    table = write(
        tmp_path / "captions.tsv",
        "source\tImage\tcaption",
        'x\ta.png\tA sign that says " stop " .',
        "",
        'x\tb.png\t"A ""quoted"" cell"',
        "x\ta.png\tA sign, red.",
    )
    expected = {"a.png": ('A sign that says " stop " .', "A sign, red."), "b.png": ('A "quoted" cell',)}
    assert by_id(read_captions(table)) == expected
    assert by_id(read_captions(tmp_path)) == expected
    assert read_captions(tmp_path)[0].image == tmp_path / "images" / "a.png"


def test_csv_with_quotes_and_kaggles_with_bare_commas(tmp_path: Path) -> None:
    pictures(tmp_path / "Images", "a.jpg")
    write(
        tmp_path / "captions.txt", "image,caption", "a.jpg,A dog , running .", 'a.jpg,"A dog, ""fast"""', "a.jpg,plain"
    )
    assert by_id(read_captions(tmp_path)) == {"a.jpg": ("A dog , running .", 'A dog, "fast"', "plain")}


def test_csv_with_quotation_marks_that_are_no_quoting(tmp_path: Path) -> None:
    pictures(tmp_path, "a.jpg")
    write(
        tmp_path / "captions.csv",
        "image,caption",
        'a.jpg,"Stop" says the sign , in red',
        'a.jpg,two " lost',
        "a.jpg,last",
    )
    assert by_id(read_captions(tmp_path)) == {"a.jpg": ('"Stop" says the sign , in red', 'two " lost', "last")}


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    pictures(tmp_path, "ä.png")
    (tmp_path / "captions.csv").write_bytes("\ufeffimage,caption\r\nä.png,Grüße\r\n".encode())
    assert by_id(read_captions(tmp_path)) == {"ä.png": ("Grüße",)}


@pytest.mark.parametrize("text_folder", ["", "Flickr8k_text"])
def test_flickr8k_as_published(tmp_path: Path, text_folder: str) -> None:
    pictures(tmp_path / "Flicker8k_Dataset", "a.jpg", "b.jpg", "c.jpg")
    text = tmp_path / text_folder
    write(
        text / "Flickr8k.token.txt",
        "a.jpg#0\tA dog .",
        "a.jpg#1\tA cat .",
        "b.jpg#0\tTwo .",
        "c.jpg#0\tNo split .",
        "lost.jpg.1#0\tx",
    )
    for split, name in {"train": "a.jpg", "dev": "b.jpg", "test": "lost.jpg.1"}.items():
        write(text / f"Flickr_8k.{split}Images.txt", name)
    assert by_id(read_captions(tmp_path, split="train")) == {"a.jpg": ("A dog .", "A cat .")}
    assert by_id(read_captions(tmp_path, split="validation")) == {"b.jpg": ("Two .",)}
    assert set(by_id(read_captions(tmp_path, missing="skip"))) == {"a.jpg", "b.jpg", "c.jpg"}
    with pytest.raises(UserError, match=r"line 5: picture 'lost\.jpg\.1' not found"):
        read_captions(tmp_path)


def test_one_table_a_split(tmp_path: Path) -> None:
    pictures(tmp_path / "images", "a.png", "b.png")
    write(tmp_path / "train.tsv", "image\tcaption", "a.png\tone")
    write(tmp_path / "val.tsv", "image\tcaption", "b.png\ttwo")
    assert by_id(read_captions(tmp_path, split="train")) == {"a.png": ("one",)}
    assert by_id(read_captions(tmp_path, split="dev")) == {"b.png": ("two",)}
    refused(tmp_path, "test", "train.tsv, val.tsv", split="test")
    refused(tmp_path, "train.tsv, val.tsv")


def test_split_column_and_division_by_name(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(60)]
    pictures(tmp_path, *names)
    write(tmp_path / "with.csv", "image,split,caption", "0.png,train,one", "1.png,val,two", "2.png,train,three")
    assert set(by_id(read_captions(tmp_path / "with.csv", split="train"))) == {"0.png", "2.png"}
    assert set(by_id(read_captions(tmp_path / "with.csv", split="dev"))) == {"1.png"}
    refused(tmp_path / "with.csv", "'test'", "train, val", split="test")
    lines = [f"{name},caption" for name in names]
    plain = write(tmp_path / "plain.csv", "image,caption", *lines)
    parts = [set(by_id(read_captions(plain, split=split))) for split in ("train", "dev", "test")]
    assert set.union(*parts) == set(names) and sum(map(len, parts)) == 60 and len(parts[0]) > 40
    write(plain, "image,caption", *reversed(lines[:30]))
    assert set(by_id(read_captions(plain, split="train"))) == parts[0] & set(names[:30])
    assert {hashed_split(name) for name in parts[0]} == {"train"}


def test_other_column_names_and_picture_folder_and_limit(tmp_path: Path) -> None:
    pictures(tmp_path / "elsewhere", "a.png", "b.png")
    table = write(tmp_path / "t.tsv", "file\ttext\tquestion", "a.png\tYes\tIs it red?", "a.png\tA box\t", "b.png\tNo\t")
    settings = {"columns": Columns(image="file", caption="text"), "images": tmp_path / "elsewhere"}
    records = read_captions(table, **settings)
    assert [(r.id, r.question, r.captions) for r in records] == [
        ("a.png", "Is it red?", ("Yes",)), ("a.png#2", "", ("A box",)), ("b.png", "", ("No",))
    ]  # fmt: skip
    assert read_captions(table, limit=2, **settings) == records[:2]


def test_manifest_with_captions_questions_and_conversations(tmp_path: Path) -> None:
    pictures(tmp_path, "a.png", "b.png")
    turns = [("human", "<image>\nWhat?"), ("gpt", "A box."), ("human", "Colour?"), ("gpt", "Red.")]
    parts = [{"type": "image"}, {"type": "text", "text": "Where?"}]
    items = [
        {"image": "a.png", "caption": "one"},
        {"image": "b.png", "captions": ["two", "three"]},
        {"images": ["a.png", "b.png"], "question": "Same?", "answer": "no"},
        {"image": "b.png", "question": "How many?", "answers": ["1", "one"]},
        {"image": "b.png", "conversations": [{"from": role, "value": text} for role, text in turns]},
        {"image": "a.png", "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Here."}]},
    ]
    manifest = write(tmp_path / "m.jsonl", *(json.dumps(item) for item in items))
    records = read_captions(manifest)
    assert [(r.question, r.captions) for r in records] == [
        ("", ("one",)), ("", ("two", "three")), ("Same?", ("no",)), ("How many?", ("1", "one")),
        ("What?", ("A box.",)), ("Colour?", ("Red.",)), ("Where?", ("Here.",)),
    ]  # fmt: skip
    assert records[2].images == (tmp_path / "a.png", tmp_path / "b.png")
    assert len({record.id for record in records}) == len(records)
    assert read_captions(tmp_path) == records


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    files = [picture(folder / "in" / f"{color}.png", color) for color in ("red", "lime", "blue")]
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Value("string"), "all": datasets.List(datasets.Value("string"))}
    )
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "caption": ["one", "two", "three"],
        "all": [["1", "one"], ["2"], ["3"]],
    }
    columns["image"][1] = {"bytes": b"broken", "path": "broken.png"}
    data = folder / "data"
    data.mkdir()
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(columns, features=features).to_parquet(data / f"{split}-00000-of-00001.parquet")
    return data


def test_hub_data_is_streamed_and_broken_pictures_are_found_on_use(parquet: Path) -> None:
    records = read_hub(str(parquet), split="train")
    assert by_id(records) == {"train-0": ("one",), "train-1": ("two",), "train-2": ("three",)}
    assert all(isinstance(record.image, bytes) for record in records)
    samples = [CaptionImages(records, Tiling(12, 1)).sample(index, random.Random(0)) for index in range(3)]
    assert [sample is None for sample in samples] == [False, True, False]
    with pytest.raises(UserError, match="train-1: not a picture"):
        CaptionImages(records, Tiling(12, 1), on_error="fail").sample(1, random.Random(0))
    several = read_captions(parquet, split="dev", columns=Columns(caption="all"), limit=2)
    assert [record.captions for record in several] == [("1", "one"), ("2",)]


def test_hub_mistakes_are_named(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(parquet, "'test'", "train, validation", split="test")
    refused(parquet, "train, validation")
    refused(parquet, "no column 'text'", "image, caption, all", split="train", columns=Columns(caption="text"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    refused("nobody/no-such-set", "cannot be read", split="train")


def test_picture_folder_with_metadata(tmp_path: Path) -> None:
    pictures(tmp_path / "train", "a.png", "b.png")
    write(tmp_path / "train" / "metadata.csv", "file_name,text", "a.png,one", "b.png,two")
    records = read_captions(tmp_path, split="train", columns=Columns(caption="text"))
    assert [record.captions for record in records] == [("one",), ("two",)]
    assert CaptionImages(records, Tiling(12, 1)).sample(0, random.Random(0)) is not None


@pytest.mark.skipif(not (DATA / "flickr8k").is_dir(), reason=f"no {DATA / 'flickr8k'} (set GRAFT_DATA)")
def test_real_flickr8k() -> None:
    sizes = {split: len(read_captions(DATA / "flickr8k", split=split)) for split in ("train", "dev", "test")}
    assert sizes == {"train": 4000, "dev": 250, "test": 500}
    records = read_captions(DATA / "flickr8k", split="test")
    assert {len(record.captions) for record in records} == {5}
    sample = CaptionImages(records, Tiling(64, 1, stretch=True)).sample(0, random.Random(0))
    assert sample is not None and sample.tiles[0].pixels.shape == (1, 3, 64, 64)
    assert not any(caption.endswith(" .") for caption in sample.captions)


# Bad input


def test_missing_column_lists_those_found(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.tsv", "file\tcaption", "a.png\tx"), "no column 'image'", "file, caption")
    refused(write(tmp_path / "b.csv", "image,text", "a.png,x"), "no column 'caption'", "image, text")


def test_missing_picture_is_named_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures(tmp_path, "a.png")
    table = write(tmp_path / "t.tsv", "image\tcaption", "a.png\tone", "gone.png\ttwo", "\0.png\tthree")
    refused(table, "line 3", "'gone.png'", "2 missing, 1 found")
    assert by_id(read_captions(table, missing="skip")) == {"a.png": ("one",)}
    assert "gone.png" in caplog.text
    refused(write(table, "image\tcaption", "gone.png\ttwo"), "'gone.png'", missing="skip")


def test_empty_things(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty folder")
    refused(write(tmp_path / "blank.tsv"), "empty")
    refused(write(tmp_path / "header.tsv", "image\tcaption"), "no captions")
    refused(write(tmp_path / "nothing.tsv", "image\tcaption", "a.png\t ", "b.png\t"), "no captions")
    refused(write(tmp_path / "blank.jsonl"), "no captions")
    pictures(tmp_path / "only", "a.png")
    refused(tmp_path / "only", "no captions table")


def test_sources_that_are_not_there_or_of_another_kind(tmp_path: Path) -> None:
    refused(tmp_path / "absent.tsv", "no such file")
    refused("captions.tsv", "no such file")
    refused(tmp_path / "absent" / "deep", "no such file or folder")
    refused(picture(tmp_path / "a.png"), ".png", "expected a captions table")
    (tmp_path / "latin.csv").write_bytes("image,caption\na.png,Grüße\n".encode("latin-1"))
    refused(tmp_path / "latin.csv", "UTF-8")
    pictures(tmp_path, "a.png")
    table = write(tmp_path / "t.csv", "image,caption", "a.png,x")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_captions(table, images=tmp_path / "nowhere")


def test_broken_lines_are_named(tmp_path: Path) -> None:
    refused(write(tmp_path / "a.tsv", "image\tcaption", "a.png\tx", "a.png"), "line 3", "1 cells; expected 2")
    refused(write(tmp_path / "b.csv", "caption,image", "x,y,a.png"), "line 2", "3 cells; expected 2")
    refused(write(tmp_path / "c.txt", "a.jpg#0\tx", "no tab"), "line 2", "expected name.jpg#0")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{image: 1}", ("not JSON",)),
        ("[1, 2]", ("expected a JSON object",)),
        ('{"picture": "a.png", "caption": "x"}', ("no 'image'", "picture, caption")),
        ('{"image": "a.png", "text": "x"}', ("no 'caption'", "image, text")),
        ('{"image": "a.png", "question": "x"}', ("no 'caption'", "image, question")),
        ('{"image": "a.png", "caption": ""}', ("no 'caption'",)),
        ('{"image": "a.png", "caption": 3}', ("'caption' is '3'",)),
        ('{"image": 7, "caption": "x"}', ("'image' is '7'",)),
        ('{"image": "a.png", "messages": "hello"}', ("list of turns",)),
        ('{"image": "gone.png", "caption": "x"}', ("'gone.png'", "not found")),
    ],
)
def test_broken_manifest_lines_are_named(tmp_path: Path, line: str, words: tuple[str, ...]) -> None:
    pictures(tmp_path, "a.png")
    refused(write(tmp_path / "m.jsonl", '{"image": "a.png", "caption": "fine"}', line), "line 2", *words)


# Samples


def test_captions_and_augmentation_are_drawn_from_the_generator(tmp_path: Path) -> None:
    gradient = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(30, 40, 3).astype(np.uint8)
    record = CaptionRecord(Image.fromarray(gradient), ("A dog .", "A  cat", "a fox"), "0")
    data = CaptionImages([record], Tiling(16, 4), augment=Augment(crop_scale=(0.3, 0.9)))
    drawn = [data.sample(0, random.Random(seed)) for seed in (*range(20), *range(20))]
    for one, again in zip(drawn[:20], drawn[20:], strict=True):
        assert one is not None and again is not None
        assert torch.equal(one.tiles[0].pixels, again.tiles[0].pixels)
        assert one.captions == ("A dog.", "A cat", "a fox")
    one = drawn[0]
    assert one is not None
    assert {one.draw(1, random.Random(seed)) for seed in range(20)} == {("A dog.",), ("A cat",), ("a fox",)}
    assert set(one.draw(5, random.Random(0))) == set(one.captions) and len(set(one.draw(2, random.Random(0)))) == 2
    assert len({one.tiles[0].pixels.sum().item() for one in drawn if one}) > 10
    plain = CaptionImages([record], Tiling(16, 4), tidy=False).sample(0, random.Random(0))
    assert plain is not None and plain.captions == record.captions


def test_several_pictures_and_a_question(tmp_path: Path) -> None:
    first, second = picture(tmp_path / "a.png", "red"), picture(tmp_path / "b.png", "blue")
    record = CaptionRecord(first, ("no",), "0", "Same?", (second,))
    sample = CaptionImages([record], Tiling(8, 1)).sample(0, random.Random(0))
    assert sample is not None and sample.question == "Same?" and len(sample.images) == 2
    assert not torch.equal(sample.images[0].pixels, sample.images[1].pixels)
    assert sample.tiles == sample.images


def test_broken_pictures_are_skipped_counted_and_the_first_ones_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [CaptionRecord(picture(tmp_path / "good.png"), ("x",), "good")]
    for number in range(8):
        (tmp_path / f"bad{number}.jpg").write_text("not a picture")
        records.append(CaptionRecord(tmp_path / f"bad{number}.jpg", ("x",), f"bad{number}"))
    data = CaptionImages(records, Tiling(8, 1))
    with caplog.at_level(logging.WARNING):
        samples = [data.sample(index, random.Random(0)) for index in (*range(9), 1)]
    assert [sample is not None for sample in samples] == [True] + [False] * 9
    assert len(data.broken) == 8
    assert str(tmp_path / "bad0.jpg") in caplog.text and "bad7.jpg" not in caplog.text
    with pytest.raises(UserError, match=r"bad3\.jpg: not a picture"):
        CaptionImages(records, Tiling(8, 1), on_error="fail").sample(4, random.Random(0))


def test_tidy_caption() -> None:
    assert tidy_caption(" A dog 's ball ,\t red   and do n't . ") == "A dog's ball, red and don't."
    assert tidy_caption('He said " hi " !') == 'He said " hi "!'
