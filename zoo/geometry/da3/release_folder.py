"""Folders of released models of Depth Anything 3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.weights.deferred import builds_shapes_only
from zoo.weights.hub import CONFIG, find_folder, read_config


def find_model(path: str, released: str, option: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the config of a released model; see `find_folder`.

    Raises:
        InputError: There is none.
    """
    folder = find_folder(path, released, option, with_weights=not builds_shapes_only())
    config = read_config(folder).get("config")
    if not isinstance(config, dict) or not isinstance(config.get("anyview", config), dict):
        raise InputError(f"{folder / CONFIG} is no config of Depth Anything 3: give a folder of a released model")
    return folder, config
