"""Released weights: in which folder they are, here or on the hub, and the config in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from zoo.errors import InputError

CONFIG = "config.json"
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no pickle, no code


def find_folder(path: str, released: str) -> Path:
    """The folder that a local path or a hub id stands for; what the hub has is downloaded, without pickle or code.

    Args:
        path: a folder, or a hub id.
        released: a hub id that would do, for the error.

    Raises:
        InputError: there is none, with the command that downloads it.
    """
    local = Path(path).expanduser()
    if local.is_dir():
        return local
    name = local.name or path
    remedy = f"where there is a network, then set --model.backbone.path weights/{name}"
    if path.startswith((".", "/", "~", "weights/")):
        raise InputError(
            f"{path} is no folder: run `hf download <hub id, such as {released}> --local-dir weights/{name}` {remedy}"
        )
    try:
        return download(path, FILES)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is no folder, and can't be loaded from the hub: run `hf download {path} --local-dir "
            f"weights/{name}` {remedy}"
        ) from error


def download(hub_id: str, files: list[str]) -> Path:
    """The folder of a hub's repository, with such files as it has of these; no network is an error at once.

    Raises:
        FileNotFoundError: there is no such repository, here or there.
    """
    try:
        return Path(snapshot_download(hub_id, allow_patterns=files))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"{hub_id}: {error}") from error


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Return the settings in config.json, or in another JSON file of a folder.

    Raises:
        InputError: it isn't there, or isn't an object of JSON.
    """
    try:
        config: dict[str, Any] = json.loads((folder / name).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name} can't be read ({error}): download it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / name} holds no settings but a {type(config).__name__}: download it again")
    return config
