"""Tensors of safetensors files, each read when it is accessed."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zoo.errors import InputError
from zoo.files.atomic_io import parse_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LISTED = 10  # names of each kind that an error shows

if TYPE_CHECKING:
    Tensors = Mapping[str, Tensor]
else:
    Tensors = Mapping  # a check of its items at run time would open files


class LazyTensors(Tensors):
    """Named tensors, each of which is read from its file when it is accessed.

    Attributes:
        names: Of the tensors, in the order that reads each file once.
        files: That they are read from.
    """

    names: Collection[str]
    files: tuple[Path, ...]

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class SafetensorsFile(LazyTensors):
    """The tensors of one safetensors file, which is never in memory as a whole.

    Raises:
        InputError: A file that can't be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} can't be read as safetensors ({error}): download it again") from error
        self.files = (path,)
        self.names = dict.fromkeys(self.file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(name)


class Shards(LazyTensors):
    """The tensors of a sharded folder with an index; at most one shard is open.

    Raises:
        InputError: An index that can't be read, a missing shard, or a shard that does not match the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            files = parse_json((folder / INDEX).read_bytes())["weight_map"]
            self.file_of: dict[str, str] = dict(sorted(files.items(), key=lambda item: item[1]))
            self.files = tuple(folder / shard for shard in dict.fromkeys(self.file_of.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / INDEX} can't be read ({error!r}): download it again") from error
        self.names = self.file_of.keys()
        self.open: tuple[str, SafetensorsFile] | None = None
        for shard in self.file_of.values():
            if Path(shard).name != shard or not os.path.isfile(folder / shard):
                raise InputError(f"{folder} lacks {shard}, which its index names: the download is not complete")

    def __getitem__(self, name: str) -> Tensor:
        shard = self.file_of[name]
        if self.open is None or self.open[0] != shard:
            self.open = None  # frees the memory of the last shard first
            self.open = shard, SafetensorsFile(self.folder / shard)
            listed = {each for each, file in self.file_of.items() if file == shard}
            if differing := sorted(listed.symmetric_difference(self.open[1])):
                raise InputError(
                    f"{self.folder / shard} and its index differ in {len(differing)} tensors: {list_names(differing)}; "
                    "download both again"
                )
        return self.open[1][name]


class UnopenedTensors(LazyTensors):
    """Tensors whose files are found and opened when they are first asked for: a model's shapes need none of them.

    Args:
        open_files: Opens them.
    """

    def __init__(self, open_files: Callable[[], LazyTensors]) -> None:
        self._open_files = open_files

    @cached_property
    def _opened(self) -> LazyTensors:
        return self._open_files()

    @property
    def names(self) -> Collection[str]:  # type: ignore[override]
        """Names of the tensors; opens the files."""
        return self._opened.names

    @property
    def files(self) -> tuple[Path, ...]:  # type: ignore[override]
        """Files of the tensors."""
        return self._opened.files

    def __getitem__(self, name: str) -> Tensor:
        return self._opened[name]


class PrefixView(LazyTensors):
    """The tensors under a prefix, by names without it."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix

    @cached_property
    def names(self) -> Collection[str]:  # type: ignore[override]
        return dict.fromkeys(name.removeprefix(self.prefix) for name in self.tensors if name.startswith(self.prefix))

    @property
    def files(self) -> tuple[Path, ...]:  # type: ignore[override]
        """Files of the tensors."""
        return files_of(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]


class FirstNames(LazyTensors):
    """Tensors of which some have a second name, by the first; where a file holds both, the first one counts.

    Args:
        tensors: By either name.
        first_of: The prefix of the first name for that of the second.
    """

    def __init__(self, tensors: Tensors, first_of: Mapping[str, str]) -> None:
        self.tensors, self.first_of = tensors, first_of

    @cached_property
    def names(self) -> dict[str, str]:  # type: ignore[override]
        first = {self.first(name): name for name in self.tensors}
        return first | {name: name for name in self.tensors if self.first(name) == name}

    def first(self, name: str) -> str:
        """Return the first name of a tensor, of either."""
        pairs = self.first_of.items()
        return next((first + name.removeprefix(second) for second, first in pairs if name.startswith(second)), name)

    @property
    def files(self) -> tuple[Path, ...]:  # type: ignore[override]
        """Files of the tensors."""
        return files_of(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.names[name]]


def open_weights(folder: Path) -> LazyTensors:
    """Open the weights of a folder: one safetensors file, or several with an index.

    Raises:
        InputError: The folder has neither; pickled weights (.pt, .bin) are never read.
    """
    if (folder / INDEX).is_file():
        return Shards(folder)
    if (folder / WEIGHTS).is_file():
        return SafetensorsFile(folder / WEIGHTS)
    raise InputError(f"{folder} holds neither {INDEX} nor {WEIGHTS}: download it again; only safetensors are read")


def full_name(tensors: Tensors, name: str) -> str:
    """Return the name of a tensor in its file."""
    if isinstance(tensors, PrefixView):
        return full_name(tensors.tensors, tensors.prefix + name)
    return tensors.names.get(name, name) if isinstance(tensors, FirstNames) else name


def are_in_files(tensors: Tensors) -> bool:
    """Return whether tensors are read from files, which may not have been opened yet."""
    if isinstance(tensors, PrefixView | FirstNames):
        return are_in_files(tensors.tensors)
    return isinstance(tensors, LazyTensors)


def first_tensor(tensors: Tensors) -> Tensor:
    """Return some tensor, whose dtype and device the others share; an empty one where there is none."""
    return next(iter(tensors.values()), torch.empty(0))


def device_of(tensors: Tensors) -> torch.device | None:
    """Return the device of tensors in memory, None for those in files."""
    return None if are_in_files(tensors) else first_tensor(tensors).device


def files_of(tensors: Tensors) -> tuple[Path, ...]:
    """Return the files that tensors are read from; none for tensors in memory."""
    return getattr(tensors, "files", ())


def source_path(tensors: Tensors) -> str:
    """Return the file that tensors are read from, or the folder of several; for error messages."""
    files = files_of(tensors)
    return str(files[0] if len(files) == 1 else files[0].parent) if files else "the weights"


def list_names(names: list[str]) -> str:
    """Return the first names, and the number of the others; for error messages."""
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
