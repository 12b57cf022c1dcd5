"""`scripts.merge` as people run it."""

import shutil
from pathlib import Path

from multimodal.model import MultimodalModel
from tests.scripts.conftest import Cli


def test_two_adapters_become_one(cli: Cli, adapter_folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(adapter_folder, tmp_path / "b")
    ended = cli("merge", adapter_folder, other, "--weights", 3, 1, "--output", tmp_path / "m", "--any-start")
    assert ended.status == 0 and ended.out.splitlines()[-1] == f"adapter saved in {tmp_path / 'm'}"
    assert "image" in MultimodalModel.from_pretrained(tmp_path / "m", device="cpu").modalities


def test_bad_input_is_one_line_and_status_2(cli: Cli, adapter_folder: Path, tmp_path: Path) -> None:
    cases = {
        (adapter_folder,): "expected two or more",
        (adapter_folder, tmp_path / "gone"): "expected an adapter folder",
        (adapter_folder, adapter_folder, "--weights", 1): "expected one for each",
        (adapter_folder, adapter_folder, "--weights", "many"): "--weights",
    }
    for words, expected in cases.items():
        ended = cli("merge", *words, "--output", tmp_path / "m")
        assert ended.status == 2 and expected in ended.err and ended.err.count("\n") == 1, ended
    assert not (tmp_path / "m").exists()
    assert cli("merge", "--help").status == 0
