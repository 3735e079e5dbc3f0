"""Selections of frames on disk: which frames of a video were chosen, by what.

    selected_frames.json   {"scene_name": "41069025", "selected_frames": [0, 118, ...], "num_frames": 16,
                            "key": "5f0c...", "made_by": {...}}

The first three are what Spatial-MLLM's scripts write and read. The key is a digest of all that the choice depends on,
so that no selection made by other settings is ever taken for one's own; `made_by` is the same in words.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

FILE = "selected_frames.json"
ENDS = 1 << 16  # bytes of a file's head and tail that identify it, beside its size
PICTURE_ENDS = 1 << 12  # of each file of a folder; a PNG ends in a checksum of all of its pixels


def digest(content: Any) -> str:
    """A name for JSON-like content: equal for equal content."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def fingerprint(path: Path) -> str:
    """What identifies a file by content: its size, head and tail; a folder: the same of its files, and their names.

    Reading a whole video would take longer than decoding what is wanted of it. A copy has the fingerprint of its
    original; a file that was written again at another size, or with another head or tail, has another one.
    """
    found = hashlib.blake2b(digest_size=16)
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    ends = PICTURE_ENDS if path.is_dir() else ENDS
    for file in files:
        size = file.stat().st_size
        found.update(f"{file.name if path.is_dir() else ''}/{size};".encode())
        with file.open("rb") as stream:
            found.update(stream.read(ends))
            stream.seek(max(0, size - ends))
            found.update(stream.read(ends))
    return found.hexdigest()


def settings(part: Any) -> Any:
    """Everything that a part was set to, ready for JSON: its class and public attributes, and so on inwards.

    A part that depends on more than that says so by an `identity()`.

    Raises:
        TypeError: an attribute that has no text of its own: keep it in a private one, or give an `identity()`.
    """
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    if isinstance(part, Path):
        return str(part)
    if isinstance(part, Tensor):
        return {"shape": list(part.shape), "data": hashlib.blake2b(part.cpu().numpy().tobytes()).hexdigest()}
    if isinstance(part, Mapping):
        return {str(key): settings(value) for key, value in part.items()}
    if isinstance(part, Sequence):
        return [settings(value) for value in part]
    if not hasattr(part, "__dict__") or inspect.isroutine(part) or isinstance(part, type):
        raise TypeError(f"{part!r} can't be told from other settings: keep it in a private attribute")
    public = {name: settings(value) for name, value in vars(part).items() if not name.startswith("_")}
    identity = {"identity": part.identity()} if hasattr(part, "identity") else {}
    return {"class": type(part).__qualname__, **public, **identity}


def read_selection(path: Path) -> dict[str, Any]:
    """What a selected_frames.json says.

    Raises:
        ValueError: one line that names the file: absent, cut short, or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path}: can't be read ({error.strerror}): make it with python main.py select-frames"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: cut short, or no JSON ({error}): make it again") from error
    frames = content.get("selected_frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(type(frame) is int and frame >= 0 for frame in frames):
        raise ValueError(f"{path}: selected_frames must be a list of frame numbers: make it again")
    if not isinstance(content.get("made_by") or {}, dict):
        raise ValueError(f"{path}: made_by must say how they were chosen, or be left out: make it again")
    if content.get("num_frames", len(frames)) != len(frames):
        raise ValueError(f"{path}: {len(frames)} frames where it says {content['num_frames']}: make it again")
    return content


def write_selection(
    path: Path, scene_name: str, frames: Sequence[int], key: str = "", made_by: Mapping[str, Any] | None = None
) -> None:
    """Writes a selected_frames.json, whole or not at all, however many processes write it."""
    content = {"scene_name": scene_name, "selected_frames": list(frames), "num_frames": len(frames), "key": key}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        partial.write_text(json.dumps({**content, "made_by": dict(made_by or {})}), encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def find_selection(path: Path, key: str) -> list[int] | None:
    """The frames in a file, if it is sound and was made under this key; else None, and it is to be made again."""
    try:
        content = read_selection(path)
    except ValueError:
        return None
    return content["selected_frames"] if content.get("key") == key else None
