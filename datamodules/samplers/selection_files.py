"""Selection files: the frames that a sampler chose from a video, and its settings.

    selected_frames.json   {"scene_name": "41069025", "selected_frames": [0, 118, ...], "num_frames": 16,
                            "key": "5f0c...", "made_by": {...}}

The first three fields are those of Spatial-MLLM's scripts. `made_by` holds everything on which the selection depends,
and `key` is its digest, so that a selection made with other settings is never reused. All selections of a folder share
the settings of the sampler, its version and the number of views.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.files.atomic_io import read_json, write_whole

FILE = "selected_frames.json"
SHARED = ("sampler", "version", "views")  # settings of all selections in a folder


def read_selection(path: Path) -> dict[str, Any]:
    """Read a selection file.

    Raises:
        ValueError: The file is missing, truncated or not a selection. The message is one line that names the file.
    """
    content = read_json(path, "create it with python main.py select-frames")
    frames = content.get("selected_frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(type(frame) is int and frame >= 0 for frame in frames):
        raise ValueError(f"{path}: selected_frames must be a list of frame indices: create it again")
    made_by = content.get("made_by") or {}
    sampler = made_by.get("sampler", {}) if isinstance(made_by, dict) else None
    if not isinstance(sampler, dict) or not _are_counts(made_by.get("views"), sampler.get("candidates")):
        raise ValueError(f"{path}: made_by must be an object with the settings of a sampler: create it again")
    if content.get("num_frames", len(frames)) != len(frames):
        raise ValueError(f"{path}: {len(frames)} frames, but num_frames is {content['num_frames']}: create it again")
    return content


def _are_counts(*values: Any) -> bool:
    return all(value is None or (type(value) is int and value > 0) for value in values)


def write_selection(
    path: Path, scene_name: str, frames: Sequence[int], key: str = "", made_by: Mapping[str, Any] | None = None
) -> None:
    """Write a selection file atomically."""
    content = {"scene_name": scene_name, "selected_frames": list(frames), "num_frames": len(frames), "key": key}
    write_whole(path, json.dumps({**content, "made_by": dict(made_by or {})}))


def find_selection(path: Path, key: str) -> list[int] | None:
    """Return the frames of a selection file, or None if it is missing, damaged or was made under another key."""
    try:
        content = read_selection(path)
    except ValueError:
        return None
    return content["selected_frames"] if content.get("key") == key else None


def shared_settings(made_by: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the settings that a selection shares with the others of its folder, empty for official files."""
    return {name: made_by[name] for name in SHARED if name in made_by} if made_by else {}


def selections_in(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the valid selection files of a folder and their content, sorted by name."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        if FILE in files:
            path = Path(parent) / FILE
            try:
                yield path, read_selection(path)
            except ValueError:  # truncated; it is created again
                continue
