"""Adapters on the hub: the folder behind a name, and publishing one."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

from multimodal.adapter_files import CARD, CONFIG, WEIGHTS, whole
from multimodal.adapter_folder import save_adapter
from multimodal.errors import UserError
from multimodal.hub_names import is_hub_name

if TYPE_CHECKING:
    from multimodal.model import MultimodalModel

_FAILURES = (OSError, ValueError, HTTPError)
"""The hub's own errors are of the first two kinds; the last is a connection that breaks."""


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter: one on disk or, by its name, one of the hub, downloaded or from the hub's local cache.

    Raises:
        UserError: the hub gives none of that name. Whether a folder is an adapter is not looked at.
    """
    folder = whole(Path(name))
    if folder.exists() or not is_hub_name(str(name)):
        return folder
    try:
        return Path(snapshot_download(str(name), allow_patterns=[CONFIG, WEIGHTS, CARD]))
    except _FAILURES as error:
        raise UserError(
            f"{name}: no such folder, and nothing of that name from the hub ({_one_line(error)}); expected an adapter "
            "folder or the name of an adapter on the hub"
        ) from error


def push_adapter(
    model: "MultimodalModel",
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    license: str,
    recipe: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
) -> str:
    """Publish the adapter folder of a model in one commit; the repository is made if it is not there.

    Args:
        repo_id: OWNER/NAME.
        private: of a new repository; None: as the owner's settings have it.
        token: with the right to write; None: the one that is logged in.
        license: identifier for the card; empty: none is named.
        recipe, metrics: as in `save_adapter`.

    Returns: the address of the commit.

    Raises:
        UserError: not such a name, no right to write, or the hub cannot be reached.
    """
    api = HfApi(token=token)
    with TemporaryDirectory() as place:
        folder = Path(place) / "adapter"
        save_adapter(model, folder, recipe=recipe, metrics=metrics, hub_name=repo_id, license=license)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Adapter made with Graft")
        except _FAILURES as error:
            raise UserError(
                f"{repo_id}: cannot be published ({_one_line(error)}); expected OWNER/NAME, and a token that may write "
                "there (hf auth login)"
            ) from error
    return str(done.commit_url)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
