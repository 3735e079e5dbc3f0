"""Folders of released models of Depth Anything 3, and their license."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.hub import CONFIG, find_folder, read_config


def find_model(path: str, released: str, option: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the config of a released model; see `find_folder`.

    Raises:
        InputError: There is none.
    """
    folder = find_folder(path, released, option)
    config = read_config(folder).get("config")
    if not isinstance(config, dict) or not isinstance(config.get("anyview", config), dict):
        raise InputError(f"{folder / CONFIG} is no config of Depth Anything 3: give a folder of a released model")
    return folder, config


@cache  # once per process
def announce_license(path: str) -> None:
    """Prints that weights are not for commercial use: those of the large, giant and nested models."""
    print(f"{path}: these weights are under CC BY-NC 4.0, for non-commercial use only", file=sys.stderr)
