"""Folders of datasets, local or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZipFile

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

HUB = "hf://datasets/"


def dataset_folder(root: str) -> Path:
    """Returns the folder of a dataset; one of the hub is downloaded, and its zips are unpacked beside them.

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
    for archive in sorted(folder.glob("*.zip")):
        unpacked = archive.with_suffix(".unpacked")  # written last: an interrupted run unpacks again
        if not unpacked.exists():
            with ZipFile(archive) as content:
                content.extractall(folder)
            unpacked.touch()
    return folder
