"""Spoken digits: the splits share nothing that they must not, and digits in a row are what they say."""

from pathlib import Path

import pytest
import torch

from multimodal.data.grid_grammar import SLOTS
from multimodal.errors import UserError
from speech.fsdd import connected_digits, is_fsdd, read_fsdd
from tests.speech.made_speech import save_digits

DIGITS = SLOTS["digit"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_digits(tmp_path_factory.mktemp("fsdd"))


def takes(folder: Path, split: str, speaker: str = "") -> set[tuple[str, int]]:
    found = read_fsdd(folder, split=split, speaker=speaker)
    return {(u.speaker, int(u.id.split(".")[0].split("_")[2])) for u in found}


def test_the_official_split_is_by_takes(folder: Path) -> None:
    assert is_fsdd(folder) and not is_fsdd(folder / "recordings")
    assert takes(folder, "test") == {(s, t) for s in ("ann", "bob") for t in range(5)}
    assert takes(folder, "train") == {(s, t) for s in ("ann", "bob") for t in range(5, 10)}
    assert takes(folder, "fit") | takes(folder, "dev") == takes(folder, "train")
    assert not takes(folder, "fit") & takes(folder, "dev")
    assert all(u.text == DIGITS[int(u.id[0])] for u in read_fsdd(folder, split="train"))


def test_a_speaker_held_out_speaks_in_the_test_alone(folder: Path) -> None:
    assert takes(folder, "test", "bob") == {("bob", t) for t in range(10)}
    assert takes(folder, "train", "bob") == {("ann", t) for t in range(10)}
    assert {speaker for speaker, _ in takes(folder, "dev", "bob")} == {"ann"}
    with pytest.raises(UserError, match=r"no speaker 'eve'; expected one of ann, bob"):
        read_fsdd(folder, split="test", speaker="eve")
    with pytest.raises(UserError, match="split 'dev2'"):
        read_fsdd(folder, split="dev2")


def test_digits_in_a_row_are_one_speakers_and_always_the_same(folder: Path) -> None:
    singles = read_fsdd(folder, split="test")
    made = connected_digits(singles, count=30, seed=1)
    assert made == connected_digits(singles, count=30, seed=1) != connected_digits(singles, count=30, seed=2)
    for one in made:
        parts = one.sound.parts  # type: ignore[attr-defined]
        assert one.text.split() == [DIGITS[int(part.path.name[0])] for part in parts] and 3 <= len(parts) <= 6
        assert {part.path.name.split("_")[1] for part in parts} == {one.speaker}
    waveform_S = made[0].sound.waveform(16_000)
    assert len(waveform_S) == pytest.approx(16_000 * made[0].sound.seconds, abs=len(parts) + 8)
    assert torch.equal(waveform_S, made[0].sound.waveform(16_000))
    with pytest.raises(UserError, match="digits in a row"):
        connected_digits([], count=1, seed=0)
