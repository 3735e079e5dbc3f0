"""Folders of datasets, local or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from datamodules.sources.base import locked

HUB = "hf://datasets/"


def dataset_folder(root: str) -> Path:
    """Return the folder of a dataset; one of the hub is downloaded, and its zips are unpacked beside them.

    Args:
        root: A folder, or the hub's address of a dataset, such as `hf://datasets/nyu-visionx/VSI-Bench`.

    Raises:
        FileNotFoundError: There is no such dataset, neither in the local cache nor on the hub, or no network.
    """
    if not root.startswith(HUB):
        return Path(root).expanduser()
    name = root.removeprefix(HUB)
    try:
        folder = Path(snapshot_download(name, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        remedy = f"where there is a network, `hf download {name} --repo-type dataset --local-dir data/{name}`"
        raise FileNotFoundError(f"{root} can't be downloaded ({error}): {remedy}") from error
    # written last: an interrupted run unpacks again
    unpacked = {archive: archive.with_suffix(".unpacked") for archive in sorted(folder.glob("*.zip"))}
    if not all(mark.exists() for mark in unpacked.values()):
        with locked(folder / ".unpacking.lock", f"another process unpacks {name}: waiting for it"):
            for archive, mark in unpacked.items():
                if not mark.exists():
                    with ZipFile(archive) as content:
                        content.extractall(folder)
                    mark.touch()
    return folder
