"""The files of a checkpoint: the model with the state of training, and the optimizer's state beside it."""

from __future__ import annotations

import glob
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from zoo.errors import InputError
from zoo.files.atomic_io import PARTIAL
from zoo.weights.checkpoint import read_checkpoint, write_checkpoint

FILES = "files"  # of a checkpoint: for each state that is stored apart, the names of its files
OPTIMIZERS = "optimizer_states"  # Lightning's key
SUFFIX, TOKEN_DIGITS = ".optimizer", 8


class CheckpointFiles(CheckpointIO):
    """Write `last.ckpt` and, in a file of its own that only training reads, the optimizer's state.

    `last.ckpt` names that file (`files: {optimizer_states: [last.<token>.optimizer]}`), and each save takes a new name:
    until `last.ckpt` is replaced, which is a single rename, the former checkpoint is complete. So a kill at any moment
    leaves a consistent pair, and a checkpoint in shards only needs more names. Lightning's own plugin copies over the
    only checkpoint where the temporary folder is on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Replace a checkpoint.

        Raises:
            InputError: It can't be written; the former one is kept.
        """
        path = Path(path)
        for partial in path.parent.glob(f".*{PARTIAL}"):  # of saves that were killed
            partial.unlink()
        content = dict(checkpoint)
        if OPTIMIZERS in content:
            apart = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:TOKEN_DIGITS]}{SUFFIX}")
            write_checkpoint(apart, {OPTIMIZERS: content.pop(OPTIMIZERS)})
            content[FILES] = {OPTIMIZERS: [apart.name]}
        try:
            write_checkpoint(path, content)
        except InputError:  # on a full disk, the new optimizer's state would keep it full
            for name in _files_apart(content):
                path.with_name(name).unlink()
            raise
        self._remove_optimizers(path, keep=_files_apart(content))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; the optimizer's state is read when it is iterated over.

        Args:
            path: The file.
            map_location: See `torch.load`; None is the CPU.
            weights_only: Without effect: nothing but tensors and plain values is ever read.
        """
        path = Path(path)
        content = read_checkpoint(path, map_location or "cpu")
        if OPTIMIZERS not in content:  # it is, in a checkpoint of Lightning's own plugin
            content[OPTIMIZERS] = _read_optimizers(path, _files_apart(content))
            content.pop(FILES, None)
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the files of a checkpoint."""
        Path(path).unlink(missing_ok=True)
        self._remove_optimizers(Path(path))

    @staticmethod
    def _remove_optimizers(path: Path, keep: Sequence[str] = ()) -> None:
        for file in optimizer_files(path):
            if file.name not in keep:
                file.unlink()


def optimizer_files(checkpoint: Path) -> Iterator[Path]:
    """Yield the files beside a checkpoint that hold the optimizer's state."""
    yield from checkpoint.parent.glob(f"{glob.escape(checkpoint.stem)}.{'?' * TOKEN_DIGITS}{SUFFIX}")


def _files_apart(content: Mapping[str, Any]) -> Sequence[str]:
    """Return the names of the files of the optimizer's state."""
    names: Sequence[str] = content.get(FILES, {}).get(OPTIMIZERS, ())
    return names


def _read_optimizers(path: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the state of each optimizer; read nothing before the first is asked for."""
    if not names:
        raise InputError(f"{path} holds no state of training, only weights: resume from last.ckpt")
    for name in names:
        file = path.with_name(name)
        if not file.exists():
            raise InputError(f"{file}, the optimizer's state of {path.name}, is missing: keep both in one folder")
        yield from read_checkpoint(file, required=OPTIMIZERS)[OPTIMIZERS]
