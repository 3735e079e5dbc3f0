"""Folders of released weights, local or from the Hugging Face hub, and their config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from zoo.errors import InputError
from zoo.files.strict_json import parse_json
from zoo.weight_reading import only_shapes

CONFIG = "config.json"
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no pickle, no code


def find_folder(path: str, released: str, option: str = "--model.backbone.path") -> Path:
    """The folder of a local path or a hub id; the latter is downloaded, without pickle or code.

    Args:
        path: a folder, or a hub id.
        released: an example of a hub id, for the error message.
        option: which names the folder, for the error message.

    Raises:
        InputError: there is none; the message has the command that downloads it.
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
        return download(path, ["*.json"] if only_shapes.get() else FILES)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is no folder, and can't be loaded from the hub: run `hf download {path} --local-dir "
            f"weights/{name}` {remedy}"
        ) from error


def download(hub_id: str, files: list[str]) -> Path:
    """Downloads the files of a hub repository that match the patterns `files`; returns their folder.

    Raises:
        FileNotFoundError: no such repository, neither in the local cache nor on the hub, or no network.
    """
    try:
        return Path(snapshot_download(hub_id, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"{hub_id}: {error}") from error


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Return the settings in config.json, or in another JSON file of a folder.

    Raises:
        InputError: the file is missing, or is not a JSON object.
    """
    try:
        config = parse_json((folder / name).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__} instead of settings")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name} can't be read ({error}): download it again") from error
    return config
