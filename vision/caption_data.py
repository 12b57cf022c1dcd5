"""Captioning data, whatever it comes as: find the layout, read the records, serve pictures as tiles.

`read_captions` is the one door to folders, tables, manifests and data sets of the hub; `CaptionImages` is what training
and evaluation draw samples from.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from multimodal.data.broken import BrokenSamples, OnError
from multimodal.data.tables import is_all_of_split, split_names
from multimodal.errors import UserError
from multimodal.hub_names import is_hub_name
from vision.caption_hub import read_hub
from vision.caption_manifest import manifest_rows
from vision.caption_tables import (
    DEFAULT_COLUMNS,
    CaptionRecord,
    Columns,
    ImageSource,
    Missing,
    assemble,
    flickr8k_splits,
    table_rows,
)
from vision.picture import open_picture
from vision.picture_features import EncodedPicture
from vision.tiling import Augment, Tiles, Tiling

TABLE_SUFFIXES = (".tsv", ".csv", ".jsonl", ".txt")


def read_captions(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Columns = DEFAULT_COLUMNS,
    images: Path | None = None,
    missing: Missing = "fail",
    subset: str | None = None,
    limit: int | None = None,
) -> list[CaptionRecord]:
    """Read captioned pictures from

    - a table (TSV, CSV) with the columns image and caption, several lines a picture; Kaggle's `captions.txt` is one;
    - a JSONL manifest (see `manifest_rows`);
    - a folder with `{train,dev,test}.tsv`, or one table, or Flickr8k's own files (`Flickr8k.token.txt`,
      `Flickr_8k.trainImages.txt`); pictures beside the table or in `images/`, `Images/` or `Flicker8k_Dataset/`;
    - a folder of parquet files, a picture folder with `metadata.csv`, or the name of a data set of the hub, streamed.

    Args:
        source: file, folder or hub name.
        split: train, dev or test; None reads all. A table without splits is divided by picture name, 90 / 5 / 5 %.
        columns: names of the columns or keys.
        images: folder of the pictures, if it is elsewhere.
        missing: a table names a picture that does not exist: "fail", or "skip" with a warning.
        subset: configuration of a hub data set.
        limit: at most so many records, the first ones.

    Raises:
        UserError: one line that names the file, what was found there and what was expected.

    Example:
        >>> records = read_captions("data/flickr8k", split="train")  # doctest: +SKIP
    """
    path = Path(source).expanduser()
    table = _find_table(path, split) if path.is_dir() else path
    if table is None:
        return read_hub(str(path), split=split, columns=columns, subset=subset, limit=limit)
    if not table.is_file():
        if path.suffix not in TABLE_SUFFIXES and is_hub_name(str(source), owner=False):
            return read_hub(str(source), split=split, columns=columns, subset=subset, limit=limit)
        raise UserError(
            f"{source}: no such file or folder; expected a captions table, a folder with one, or a hub name"
        )
    if table.suffix not in TABLE_SUFFIXES:
        raise UserError(
            f"{table}: a {table.suffix or 'nameless'} file; expected a captions table ({', '.join(TABLE_SUFFIXES)})"
        )
    if table.suffix == ".jsonl":
        rows = manifest_rows(table, columns)
    else:
        rows = table_rows(table, columns, flickr8k_splits(table.parent))
    whole = is_all_of_split(table, split, declared=any(row.split for row in rows))
    return assemble(rows, table, split=None if whole else split, images=images, missing=missing)[:limit]


def _find_table(folder: Path, split: str | None) -> Path | None:
    """The captions table of a folder; None where `datasets` is to read the folder."""
    names = split_names(split) if split else ()
    named = [f"{name}{suffix}" for name in names for suffix in TABLE_SUFFIXES]
    named += ["Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt"]
    named += [f"captions{suffix}" for suffix in TABLE_SUFFIXES]
    for name in named:
        if (folder / name).is_file():
            return folder / name
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        raise UserError(f"{folder}: an empty folder; expected pictures and a captions table")
    if any(file.suffix == ".parquet" or file.name in ("metadata.csv", "metadata.jsonl") for file in files):
        return None
    tables = [file for file in files if file.parent == folder and file.suffix in (".tsv", ".csv", ".jsonl")]
    if len(tables) == 1:
        return tables[0]
    if tables:
        listed = ", ".join(table.name for table in tables)
        raise UserError(f"{folder}: no table for split {split or 'given'!r}; tables found: {listed}")
    raise UserError(
        f"{folder}: {len(files)} files but no captions table; expected captions.tsv or captions.jsonl there"
    )


def tidy_caption(caption: str) -> str:
    """Undo the tokenisation of published captions: single spaces, none before punctuation or inside a contraction.

    Example:
        >>> tidy_caption(" A dog 's ball ,  red . ")
        "A dog's ball, red."
    """
    caption = re.sub(r"\s+", " ", caption).strip()
    caption = re.sub(r" ([.,;:!?)])", r"\1", caption)
    return re.sub(r" ('(?:s|re|ve|ll|d|m)|n't)\b", r"\1", caption)


@dataclass(frozen=True)
class ImageTextSample:
    """The pictures' tiles, all captions, the question if there is one."""

    images: tuple[Tiles | EncodedPicture, ...]
    captions: tuple[str, ...]
    id: str
    question: str = ""

    def draw(self, count: int, rng: random.Random) -> tuple[str, ...]:
        """So many different captions to learn; all of them, in random order, if there are fewer."""
        return tuple(rng.sample(self.captions, min(count, len(self.captions))))

    @property
    def tiles(self) -> tuple[Tiles, ...]:
        """The pictures.

        Raises:
            ValueError: there are features alone of one of them.
        """
        found = tuple(image for image in self.images if not isinstance(image, EncodedPicture))
        if len(found) < len(self.images):
            raise ValueError(f"{self.id}: an encoded picture; expected tiles")
        return found


class CaptionImages:
    """Records as samples with tiles.

    Args:
        records: from `read_captions`.
        tiling: how pictures become tiles.
        on_error: a broken picture gives None or raises; see `BrokenSamples`.
        augment: for training; None leaves pictures alone.
        tidy: apply `tidy_caption`.
        prepare: makes the item of a picture that is a file and is not augmented, in place of the tiling.
    """

    def __init__(
        self,
        records: Sequence[CaptionRecord],
        tiling: Tiling,
        *,
        on_error: OnError = "skip",
        augment: Augment | None = None,
        tidy: bool = True,
        prepare: Callable[[Path], Tiles | EncodedPicture] | None = None,
    ) -> None:
        self.records, self.tiling, self.on_error, self.augment, self.tidy = records, tiling, on_error, augment, tidy
        self.prepare = prepare
        self._broken = BrokenSamples(on_error=on_error, what="pictures")

    def __len__(self) -> int:
        return len(self.records)

    @property
    def broken(self) -> set[str]:
        """Ids of the broken pictures found so far."""
        return self._broken.ids

    def sample(self, index: int, rng: random.Random) -> ImageTextSample | None:
        """The sample of one record; `rng` draws the augmentation.

        Raises:
            UserError: a broken picture, with `on_error="fail"`.
        """
        record = self.records[index]
        images = self._broken.read(lambda: tuple(self._item(i, record.id, rng) for i in record.images), id=record.id)
        if images is None:
            return None
        return ImageTextSample(images, self.captions(record), record.id, record.question)

    def captions(self, record: CaptionRecord) -> tuple[str, ...]:
        """All captions of a record, as they are learnt."""
        return tuple(tidy_caption(text) for text in record.captions) if self.tidy else record.captions

    def _item(self, image: ImageSource, name: str, rng: random.Random) -> Tiles | EncodedPicture:
        if self.prepare is not None and isinstance(image, Path) and not (self.augment and self.augment.changes):
            if self.augment:
                self.augment.draw(rng)  # what is drawn later must be the same with and without
            return self.prepare(image)
        picture = open_picture(image, name=None if isinstance(image, Path) else name)
        return self.tiling.tile(self.augment(picture, rng) if self.augment else picture)
