"""Published weights: read lazily from safetensors files, and copied into a model tensor by tensor."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.files.strict_json import parse_json
from zoo.progress import progress
from zoo.sharded_tensors import shard_like, whole
from zoo.weight_reading import only_shapes

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DIGITS = 32  # of a fingerprint: 128 bits
LISTED = 10  # names of each kind that an error shows
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class LazyTensors(Mapping[str, Tensor]):
    """Named tensors, each of which is read from its file when it is accessed.

    Attributes:
        names: of the tensors, in the order that reads each file once.
        files: that they are read from.
    """

    names: Collection[str]
    files: tuple[Path, ...]

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class NoTensors(LazyTensors):
    """The tensors of a model of which only shapes are built."""

    names: Collection[str] = ()
    files = ()

    def __getitem__(self, name: str) -> Tensor:
        raise KeyError(name)


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
                    f"{self.folder / shard} and its index differ in {len(differing)} tensors: {_listed(differing)}; "
                    "download both again"
                )
        return self.open[1][name]


class PrefixView(LazyTensors):
    """The tensors under a prefix, by names without it."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self.tensors, self.prefix = tensors, prefix
        self.files = files_of(tensors)
        self.names = dict.fromkeys(name.removeprefix(prefix) for name in tensors if name.startswith(prefix))

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.prefix + name]


def full_name(tensors: Mapping[str, Tensor], name: str) -> str:
    """The name of a tensor in its file."""
    return full_name(tensors.tensors, tensors.prefix + name) if isinstance(tensors, PrefixView) else name


def files_of(tensors: Mapping[str, Tensor]) -> tuple[Path, ...]:
    """The files that tensors are read from; empty for tensors in memory."""
    return getattr(tensors, "files", ())


def source_path(tensors: Mapping[str, Tensor]) -> str:
    """The file that tensors are read from, or the folder of several; for error messages."""
    files = files_of(tensors)
    return str(files[0] if len(files) == 1 else files[0].parent) if files else "the weights"


def open_weights(folder: Path) -> Mapping[str, Tensor]:
    """Opens the weights of a folder: one safetensors file, or several with an index.

    Raises:
        InputError: The folder has neither; pickled weights (.pt, .bin) are never read.
    """
    if only_shapes.get():
        return NoTensors()
    if (folder / INDEX).is_file():
        return Shards(folder)
    if (folder / WEIGHTS).is_file():
        return SafetensorsFile(folder / WEIGHTS)
    raise InputError(f"{folder} holds neither {INDEX} nor {WEIGHTS}: download it again; only safetensors are read")


def load_into(
    state: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    *,
    what: str,
    current_names: Callable[[str], tuple[str, ...]] = lambda name: (name,),
    official_name: Callable[[str], str] = lambda name: name,
    skip: tuple[str, ...] = (),
) -> None:
    """Copies official tensors into a model one at a time, converted to the model's dtype and device.

    Args:
        state: the model's tensors to fill, by the names of this project.
        tensors: by official names.
        what: the model, for error messages.
        current_names: maps an official name to the names of this project; several share its rows equally.
        official_name: the inverse of `current_names`.
        skip: prefixes of official names to ignore.

    Raises:
        InputError: Lists the tensors that are missing, unexpected, duplicated, of another shape, or not floating-point.
            Some tensors may be loaded by then.
    """
    missing = dict.fromkeys(official_name(name) for name in state)
    places = set(missing)
    problems: dict[str, list[str]] = {
        kind: [] for kind in ("missing", "unexpected", "under two names", "misshapen", "no floating-point numbers")
    }
    for name in progress(tensors, f"loading {what}", "tensors"):
        if name.startswith(skip):
            continue
        ours = current_names(name)
        official = official_name(ours[0])  # the file may use the names of another version
        if official not in missing:
            problems["under two names" if official in places else "unexpected"].append(full_name(tensors, name))
            continue
        del missing[official]
        tensor, targets = tensors[name], [state[part] for part in ours]
        shape = list(targets[0].shape)
        shape[0] *= len(targets)
        if list(tensor.shape) != shape:
            problems["misshapen"].append(f"{full_name(tensors, name)} {list(tensor.shape)} instead of {shape}")
            continue
        if tensor.dtype not in FLOATS:  # quantized: the numbers alone are not the weights
            problems["no floating-point numbers"].append(f"{full_name(tensors, name)} {tensor.dtype}")
            continue
        with torch.no_grad():
            for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
                target.copy_(shard_like(part, target))
    problems["missing"] = [full_name(tensors, name) for name in missing]
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise InputError(f"the weights don't fit this {what}: {found}; check the config and {source_path(tensors)}")


def _listed(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def fingerprint(content: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors; some 4 s for 3 billion parameters in bfloat16.

    For a sharded model it is a collective: every process must call it.
    """
    tensors = content.state_dict() if isinstance(content, nn.Module) else content
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(whole(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS]
