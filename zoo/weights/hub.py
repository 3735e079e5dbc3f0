"""Folders of released weights, local or from the Hugging Face hub, and their config.

A hub id may go on with a folder of the repository: `WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from zoo.errors import InputError
from zoo.files.atomic_io import parse_json
from zoo.weights.lazy_tensors import UnopenedTensors, open_weights

CONFIG = "config.json"
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no pickle, no code
CONFIGS = ["*.json"]


def find_folder(path: str, released: str, option: str = "--model.backbone.path", *, with_weights: bool = True) -> Path:
    """Return the folder of a local path or a hub id; the latter is downloaded, without pickle or code.

    Args:
        path: A folder, or a hub id.
        released: An example of a hub id, for the error message.
        option: Which names the folder, for the error message.
        with_weights: Whether more than the JSON files is needed.

    Raises:
        InputError: There is none; the message has the command that downloads it.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    name = local.name or path
    remedy = f"where there is a network, then set {option} weights/{name}"
    if path.startswith((".", "/", "~", "weights/")):
        raise InputError(
            f"{path} is no folder: run `hf download <hub id, such as {released}> --local-dir weights/{name}` {remedy}"
        )
    try:
        return download(path, FILES if with_weights else CONFIGS)
    except FileNotFoundError as error:
        repository, inside = split_hub_id(path)
        which = f"{path} --local-dir weights/{name}"
        if inside:
            which = f"{repository} --include '{inside}/*' --local-dir weights"
        raise InputError(
            f"{path} is no folder, and can't be loaded from the hub: run `hf download {which}` {remedy}"
        ) from error


def split_hub_id(hub_id: str) -> tuple[str, str]:
    """Return the repository of a hub id, and the folder in it; empty for the repository itself."""
    parts = hub_id.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def find_tensors(path: str, released: str, option: str = "--model.backbone.path") -> UnopenedTensors:
    """Return the tensors of a local path or a hub id, which are found, downloaded and opened when needed.

    Args:
        path: As of `find_folder`.
        released: As of `find_folder`.
        option: As of `find_folder`.
    """
    return UnopenedTensors(lambda: open_weights(find_folder(path, released, option)))


def download(hub_id: str, files: list[str]) -> Path:
    """Download the files of a hub repository, or of a folder in it, that match `files`, and return their folder.

    Raises:
        FileNotFoundError: No such repository, neither in the local cache nor on the hub, or no network.
    """
    repository, inside = split_hub_id(hub_id)
    patterns = [f"{inside}/{pattern}" for pattern in files] if inside else files
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns)) / inside
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"{hub_id}: {error}") from error


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Return the settings in config.json, or in another JSON file of a folder.

    Raises:
        InputError: The file is missing, or is not a JSON object.
    """
    try:
        config = parse_json((folder / name).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__} instead of settings")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name} can't be read ({error}): download it again") from error
    return config
