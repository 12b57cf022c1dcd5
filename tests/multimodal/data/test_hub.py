"""Rows of data sets: splits by any of their names, media not decoded, labels by name, one line for what is wrong."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from multimodal.data.hub import CONVERTED, check_columns, media_source, stream_split
from multimodal.errors import UserError


def save(folder: Path, *splits: str) -> Path:
    """A folder of parquet files, one a split; its media are no media."""
    media = [{"bytes": b"not decoded", "path": "a.bin"}, None]
    columns = {"audio": media, "image": media, "language": [1, None], "text": ["one", "two"]}
    data = datasets.Dataset.from_dict(columns)
    # Cast, not encoded: to encode sound takes torchcodec.
    data = data.cast_column("audio", datasets.Audio()).cast_column("image", datasets.Image())
    data = data.cast_column("language", datasets.ClassLabel(names=["en", "de"]))
    folder.mkdir(parents=True)
    for split in splits:
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_media_stay_bytes_and_labels_get_their_names(tmp_path: Path) -> None:
    found, rows = stream_split(str(save(tmp_path / "data", "train", "validation")), split="dev")
    first, second = rows
    assert found == "validation" and [first["text"], second["text"]] == ["one", "two"]
    assert media_source(first["audio"]) == media_source(first["image"]) == b"not decoded"
    assert (first["language"], second["language"]) == ("de", None)
    assert media_source(second["audio"]) is None


def test_media_lie_here_or_are_fetched(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"here")
    assert media_source({"bytes": None, "path": str(file)}) == media_source(str(file)) == file
    assert media_source({"bytes": b"", "path": f"file://{file}"}) == b"here"
    assert media_source({"array": [0.0]}) is media_source(7) is None
    with pytest.raises(UserError, match=r"gone\.bin: cannot be fetched"):
        media_source({"bytes": None, "path": str(tmp_path / "gone.bin")})


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = save(tmp_path / "one", "test"), save(tmp_path / "two", "train", "test")
    assert stream_split(str(one))[0] == "test"
    for folder, split, message in ((two, None, "no split 'given'"), (one, "dev", "no split 'dev'; splits found: test")):
        with pytest.raises(UserError, match=message):
            stream_split(str(folder), split=split)
    with pytest.raises(UserError, match=r"no column 'sound'; columns found: audio, image, language, text"):
        check_columns(next(stream_split(str(one))[1]), ("text", "sound"), "one")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data set 'nobody/none' cannot be read \(.*Hub.*expected a folder") as refused:
        stream_split("nobody/none", split="train")
    assert "\n" not in str(refused.value)


def test_a_broken_file_ends_in_one_line(tmp_path: Path) -> None:
    folder = save(tmp_path / "data", "train")
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match=r"data set '.*data'"):
        list(stream_split(str(folder), split="train")[1])


def test_of_a_script_the_converted_copy_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the hub lays it out: a folder for each configuration, in it one for each split."""
    for split in ("train", "test"):
        file = next(save(tmp_path / split, split).iterdir())
        (tmp_path / "copy" / "en_us" / split).mkdir(parents=True)
        file.rename(tmp_path / "copy" / "en_us" / split / "0000.parquet")
    load = datasets.load_dataset

    def fake(name: str, *args: Any, revision: str | None = None, **options: Any) -> Any:
        if revision is None:
            raise RuntimeError(f"Dataset scripts are no longer supported, but found {name}.py")
        assert revision == CONVERTED and not args
        return load(str(tmp_path / "copy"), **options)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    found, rows = stream_split("speech", split="test", subset="en_us")
    assert found == "test" and len(list(rows)) == 2
