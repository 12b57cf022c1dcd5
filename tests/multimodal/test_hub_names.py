"""Names of the hub are told from paths."""

from pathlib import Path

import pytest

from multimodal.hub_names import is_hub_name


@pytest.mark.parametrize("owner", [True, False])
def test_names_are_told_from_paths(owner: bool) -> None:
    assert all(is_hub_name(name, owner=owner) for name in ("fixie-ai/covost2", "a.b/c_1.0"))
    assert not any(is_hub_name(name, owner=owner) for name in ("/data/x", "a/b/c", "../x", "~/x", "two words", "x/"))


def test_a_name_without_an_owner_is_one_where_none_is_wanted() -> None:
    assert is_hub_name("squad", owner=False) and not is_hub_name("squad")


def test_what_is_here_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "squad").mkdir(parents=True)
    assert not is_hub_name("me/squad") and not is_hub_name("me", owner=False)
