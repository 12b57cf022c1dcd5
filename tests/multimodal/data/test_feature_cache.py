"""Entries on disk: whole or absent, whatever happens; never more than the bound allows."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from multimodal.data.feature_cache import STALE_SECONDS, FeatureCache, cache_key
from multimodal.errors import UserError


def entry(value: float = 1.0, numbers: int = 250) -> dict[str, torch.Tensor]:
    return {"tokens": torch.full((numbers,), value), "half": torch.ones(3, dtype=torch.bfloat16)}


def test_what_is_stored_is_loaded_to_the_bit(tmp_path: Path) -> None:
    cache, key = FeatureCache(tmp_path / "deep" / "c", max_gb=1), cache_key("weights", 3, Path("a"))
    assert cache.load(key) is None
    assert cache.store(key, entry(2.5))
    found = cache.load(key)
    assert found is not None and all(
        torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in entry(2.5).items()
    )
    assert (cache.misses, cache.hits) == (1, 1)
    assert key == cache_key("weights", 3, Path("a")) != cache_key("weights", 3, Path("b"))


def test_an_entry_that_cannot_be_read_counts_as_absent_and_is_made_anew(tmp_path: Path) -> None:
    cache, key = FeatureCache(tmp_path, max_gb=1), cache_key(1)
    cache.store(key, entry())
    file = next(tmp_path.glob("*/*"))
    file.write_bytes(file.read_bytes()[:100])
    assert cache.load(key) is None and not file.exists()
    assert cache.store(key, entry()) and cache.load(key) is not None


def test_a_good_entry_of_another_user_is_read_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, key = FeatureCache(tmp_path, max_gb=1), cache_key(1)
    cache.store(key, entry())

    def refused(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.utime", refused)
    assert cache.load(key) is not None
    monkeypatch.setattr("multimodal.data.feature_cache.load_file", refused)
    assert cache.load(key) is None and len(list(tmp_path.glob("*/*"))) == 1


def test_a_full_cache_drops_what_other_runs_left_and_keeps_its_own(tmp_path: Path) -> None:
    before = FeatureCache(tmp_path, max_gb=8e-6)  # 8,000 bytes: some seven entries of a thousand
    for i in range(6):
        before.store(cache_key("old", i), entry())
    for file in tmp_path.glob("*/*"):
        os.utime(file, (time.time() - 100,) * 2)
    cache = FeatureCache(tmp_path, max_gb=8e-6)
    assert cache.load(cache_key("old", 5)) is not None
    stored = [cache.store(cache_key("new", i), entry()) for i in range(9)]
    assert stored[0] and not stored[-1] and cache.full
    assert cache.load(cache_key("new", 0)) is not None and cache.load(cache_key("old", 5)) is not None
    assert cache.size() <= 8_000 * 1.05 + 1_200 and cache.load(cache_key("old", 0)) is None


WRITER = """
import sys, torch
from pathlib import Path
from multimodal.data.feature_cache import FeatureCache, cache_key
cache = FeatureCache(Path(sys.argv[1]), max_gb=1)
print("ready", flush=True)
for n in range(100000):
    cache.store(cache_key(n % 7), {"tokens": torch.full((200_000,), float(n % 7))})
"""


def test_a_second_process_and_a_kill_leave_whole_entries(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    cache = FeatureCache(tmp_path, max_gb=1)
    end, seen = time.time() + 1.5, 0
    while time.time() < end:
        for n in range(7):
            cache.store(cache_key(n), {"tokens": torch.full((200_000,), float(n))})
            found = cache.load(cache_key(n))
            assert found is not None and bool((found["tokens"] == n).all())
            seen += 1
    process.kill()
    process.wait()
    assert seen and all(len(cache.load(cache_key(n)) or {}) == 1 for n in range(7))


def test_drafts_that_a_kill_left_are_removed_and_fresh_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    old, fresh = tmp_path / "ab" / "x.safetensors.1.tmp", tmp_path / "ab" / "y.safetensors.2.tmp"
    for file in (old, fresh):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - STALE_SECONDS - 10,) * 2)
    FeatureCache(tmp_path, max_gb=1)
    assert not old.exists() and fresh.exists()


def test_bad_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 GB; expected more than 0"):
        FeatureCache(tmp_path, max_gb=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected a writable folder"):
        FeatureCache(tmp_path / "file", max_gb=1)
