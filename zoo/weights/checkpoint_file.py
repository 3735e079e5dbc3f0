"""Files of `torch.save`: written whole, and read memory-mapped, without running code that they may hold."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.files.atomic_io import replace_file, write_error


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a checkpoint atomically.

    The new file is read back before it replaces the former one: what `read_checkpoint` refuses is no checkpoint.

    Raises:
        InputError: It can't be written, or holds other types than tensors and plain values; the former file is kept.
    """

    def write(file: BinaryIO) -> None:
        try:
            torch.save(dict(content), file)
            file.flush()
        except RuntimeError as error:  # torch's writer hides the cause, such as a full disk
            if isinstance(error.__context__, OSError | KeyboardInterrupt):
                raise error.__context__ from None
            raise
        try:
            torch.load(file.name, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError as error:
            raise InputError(
                f"{path} can't be written: {_refused_type(error)} is neither a tensor nor a plain value, so it could "
                "not be read back: leave it out of the state_dict() of the callback or module that saves it"
            ) from error

    try:
        replace_file(path, write)
    except OSError as error:
        raise write_error(path, error) from error


def refuse_damaged(path: Path) -> None:
    """Raise InputError for a file that is no checkpoint, or was not written to its end."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is cut short, or no checkpoint: copy it again, give another one, or train anew")


def read_checkpoint(path: str | Path, map_location: Any = "cpu", required: str = "state_dict") -> dict[str, Any]:
    """Read a checkpoint; the tensors stay on disk until they are used.

    Only tensors and plain values are unpickled, so a file of unknown origin can't run code.

    Args:
        path: The file.
        map_location: See `torch.load`.
        required: The entry that it must have.

    Raises:
        InputError: It is absent, damaged, holds anything but tensors and plain values, or lacks the entry.
    """
    refuse_damaged(Path(path))
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise InputError(
            f"{path} holds {_refused_type(error)}, not only tensors and plain values; loading it could run code of a "
            "stranger, so it is not read: take a checkpoint that this project wrote"
        ) from error
    except Exception as error:  # a damaged pickle is a program of other instructions
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} can't be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict) or required not in content:
        raise InputError(f"{path} is no checkpoint: it has no {required}")
    state = content.get("state_dict", {})
    if not isinstance(state, dict) or not all(type(k) is str and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path} is damaged: its state_dict is not of named tensors")
    return content


def _refused_type(error: UnpicklingError) -> str:
    """Return the type that torch's message names; the message itself recommends to load the file regardless."""
    words = str(error).split()
    after = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "GLOBAL"), "")
    return after or "an object"
