"""Adapters on the hub. Its client is real, but for what would write to the hub: that fills the local cache instead."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from multimodal import adapter_hub as module
from multimodal.errors import UserError
from tests.hub_cache import COMMIT, publish
from tests.multimodal.test_adapter_folder import load, logits


@pytest.fixture
def calls(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the hub was asked to do, with a stand-in for the part of its client that writes."""
    asked: list[dict[str, Any]] = []

    class Api:
        def __init__(self, *, token: str | None) -> None:
            asked.append({"token": token})

        def create_repo(self, repo_id: str, **settings: Any) -> None:
            asked.append({"create": repo_id, **settings})

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
            publish(folder_path, repo_id, hub_cache)
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/{COMMIT}")

    monkeypatch.setattr(module, "HfApi", Api)
    return asked


def test_what_was_pushed_is_loaded_by_its_name(
    adapter_folder: Path, hub_cache: Path, calls: list[dict[str, Any]]
) -> None:
    model = load(adapter_folder)
    metrics = {"cider_d": 0.25}
    url = model.push_to_hub("me/scenes", private=True, token="secret", license="mit", recipe={}, metrics=metrics)
    assert url.endswith(f"me/scenes/commit/{COMMIT}")
    assert calls == [{"token": "secret"}, {"create": "me/scenes", "private": True, "exist_ok": True}]
    snapshot = hub_cache / "models--me--scenes" / "snapshots" / COMMIT
    assert sorted(file.name for file in snapshot.iterdir()) == [
        "README.md",
        "adapter.safetensors",
        "adapter_config.json",
    ]
    assert "secret" not in "".join(file.read_text() for file in snapshot.iterdir() if file.suffix != ".safetensors")
    card = ModelCard.load(snapshot / "README.md")
    assert card.data.license == "mit" and 'from_pretrained("me/scenes")' in card.text
    again = load(Path("me/scenes"))
    assert torch.equal(logits(again), logits(model))
    again.save_pretrained(hub_cache / "copy")
    assert json.loads((hub_cache / "copy" / "adapter_config.json").read_text())["metrics"] == metrics
    again.unload_adapter("image")
    again.load_adapter("me/scenes")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.usefixtures("hub_cache")
def test_a_folder_wins_over_a_name_of_the_hub(adapter_folder: Path) -> None:
    here = Path(shutil.copytree(adapter_folder, "me/scenes"))
    assert module.find_adapter("me/scenes") == here


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("name", ["me/nothing", "runs/adapter"])
def test_what_is_neither_folder_nor_on_the_hub_is_one_line(name: str) -> None:
    with pytest.raises(
        UserError, match=f"{name}: no such folder, and nothing of that name from the hub .*; expected"
    ) as e:
        module.find_adapter(name)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["../me/scenes", "/me/scenes", "a/b/c", "scenes", "./scenes", "~/scenes"])
def test_a_path_is_never_asked_of_the_hub(name: str) -> None:
    assert module.find_adapter(name) == Path(name)


@pytest.mark.usefixtures("hub_cache")
@pytest.mark.parametrize("repo_id", ["me/scenes", "no name"])
def test_what_the_hub_refuses_is_one_line(adapter_folder: Path, repo_id: str) -> None:
    """Its own client: nothing may be written offline, and names are checked before that."""
    with pytest.raises(UserError, match=rf"{repo_id}: cannot be published .*; expected OWNER/NAME") as error:
        load(adapter_folder).push_to_hub(repo_id)
    assert "\n" not in str(error.value)
