"""The sentences of GRID from names and from alignments."""

import os
from pathlib import Path

import pytest

from multimodal.data.tables import read_table
from multimodal.errors import UserError
from speech.grid import grid_sentence, is_grid_name, read_align

TABLE = (
    Path(os.environ.get("GRAFT_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "grid/transcripts.tsv"
)


def test_names_spell_sentences() -> None:
    assert grid_sentence("bbaf3s") == "bin blue at f three soon"
    assert grid_sentence("swwzzn") == "set white with z zero now"
    assert not is_grid_name("swwwzn") and not is_grid_name("clip01")
    with pytest.raises(UserError, match="not a clip of GRID"):
        grid_sentence("clip01")


@pytest.mark.skipif(not TABLE.is_file(), reason=f"no GRID at {TABLE}")
def test_names_agree_with_the_transcripts_of_the_real_clips() -> None:
    rows = read_table(TABLE, TABLE.read_text(), required=("id", "text"))
    assert len(rows) == 850 and all(grid_sentence(cells["id"]) == cells["text"] for _, cells in rows)


def test_alignments_are_read_without_their_silences(tmp_path: Path) -> None:
    file = tmp_path / "bbaf2n.align"
    file.write_text("0 23750 sil\n23750 29500 bin\n29500 34000 blue\n34000 34100 sp\n34100 35500 at\n")
    assert read_align(file) == "bin blue at"
    file.write_text("0 23750 sil\nbin\n")
    with pytest.raises(UserError, match="line 2"):
        read_align(file)
