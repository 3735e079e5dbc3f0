"""Released weights: finding their folder, reading tensors by official names, and loading them into a model.

1. **Folders.** A path is a local folder, or the id of a Hugging Face repository, which is downloaded.

2. **Tensors.** A mapping from official names. Each tensor is read from its safetensors file when it is accessed.

3. **Into a model.** A part with released weights is built on the meta device, where tensors have a shape but no memory.
`load_weights` maps the names by a table, converts each tensor to the part's dtype, and assigns it in place of the empty
one.

Under `torch.device("meta")`, PyTorch's own way to build a model by shapes only, no file is opened. `plan` computes the
cost of such models. A model that FSDP2 shards is built within `leave_unread`, and `read_weights` reads into its shards.
"""

from __future__ import annotations

import os.path
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from zoo.errors import InputError
from zoo.files.atomic_io import parse_json
from zoo.progress import progress

if TYPE_CHECKING:
    Tensors = Mapping[str, Tensor]
else:
    Tensors = Mapping  # a runtime type check of its items would open files

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # neither pickle nor code
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LISTED = 10  # number of names of each kind that an error shows
MAPPED = 16 * 2**20  # a file is reopened after this many bytes were read, or after 1/64 of a large file
UNREAD = "_unread_weights"  # attribute of a module with weights that `read_weights` will read
Layout = Mapping[str, str]  # prefixes of official names, and of the same tensors in a `SpatialVLM`
M = TypeVar("M", bound=nn.Module)


# ---- Folders --------------------------------------------------------------------------------------------------------


def find_folder(path: str, released: str, option: str = "--model.backbone.path", *, with_weights: bool = True) -> Path:
    """Return the folder of a local path or a hub id. A hub id is downloaded, without pickle or code.

    Args:
        path: A folder, or a hub id, which may continue with a folder in the repository:
            `WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B`.
        released: An example of a hub id, for the error message.
        option: The option that names the folder, for the error message.
        with_weights: Whether files other than JSON are needed.

    Raises:
        InputError: There is no such folder.
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
        return download(path, DOWNLOADED if with_weights else ["*.json"])
    except FileNotFoundError as error:
        repository, inside = _split_hub_id(path)
        which = f"{path} --local-dir weights/{name}"
        if inside:
            which = f"{repository} --include '{inside}/*' --local-dir weights"
        raise InputError(
            f"{path} is no folder, and can't be loaded from the hub: run `hf download {which}` {remedy}"
        ) from error


def download(hub_id: str, files: list[str]) -> Path:
    """Download the matching files of a hub repository or of a folder in it, and return their folder.

    Raises:
        FileNotFoundError: The repository is neither in the local cache nor on the hub, or there is no network.
    """
    repository, inside = _split_hub_id(hub_id)
    patterns = [f"{inside}/{pattern}" for pattern in files] if inside else files
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns)) / inside
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"{hub_id}: {error}") from error


def _split_hub_id(hub_id: str) -> tuple[str, str]:
    """Return the repository of a hub id, and the folder in it, which is empty for the repository itself."""
    parts = hub_id.split("/")
    return "/".join(parts[:2]), "/".join(parts[2:])


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Return the settings in config.json, or in another JSON file of a folder.

    Raises:
        InputError: The file is missing, or is not a JSON object.
    """
    try:
        config = parse_json((folder / name).read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__} instead of settings")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / name} can't be read ({error}): download it again") from error
    return config


# ---- Tensors --------------------------------------------------------------------------------------------------------


class LazyTensors(Tensors):
    """Named tensors that are read when they are accessed.

    Attributes:
        names: Names of the tensors, in an order that reads each file once.
        files: The files that the tensors are read from.
        is_stored: Whether the tensors are in files instead of in memory. Does not open a file.
    """

    names: Mapping[str, object]
    files: tuple[Path, ...]
    is_stored: bool

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor: ...

    def __contains__(self, name: object) -> bool:  # Mapping's own method would read the tensor
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class StoredTensors(LazyTensors):
    """The tensors of a safetensors file, or of a folder with one such file or with several and an index.

    Args:
        find: Returns the file or the folder. Called when a name is first requested, so a model built by shapes only
            needs no files and downloads none.

    Raises:
        InputError: When names or tensors are requested: the folder has neither file nor index, one of them can't be
            read, or they differ. Pickled weights (.pt, .bin) are never read.
    """

    is_stored = True

    def __init__(self, find: Callable[[], Path]) -> None:
        self._find = find
        self._open: tuple[Path, Any] | None = None
        self._left_to_map = 0

    @cached_property
    def names(self) -> dict[str, Path]:  # type: ignore[override]
        """The file of each tensor."""
        path = self._find()
        if (path / INDEX).is_file():
            return _read_index(path / INDEX)
        if path.is_dir() and not (path / WEIGHTS).is_file():
            raise InputError(
                f"{path} holds neither {INDEX} nor {WEIGHTS}: download it again; only safetensors are read"
            )
        file = path / WEIGHTS if path.is_dir() else path
        return dict.fromkeys(_open_file(file).keys(), file)

    @property
    def files(self) -> tuple[Path, ...]:  # type: ignore[override]
        """See `LazyTensors`."""
        return tuple(dict.fromkeys(self.names.values()))

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor, which is part of the memory-mapped file. Copy it to keep it."""
        file = self.names[name]
        # The read part of a memory-mapped file counts as memory of the process until the file is closed, so a model in
        # one file would take twice its size.
        if self._open is None or self._open[0] is not file or self._left_to_map < 0:
            self._open = None
            self._open, self._left_to_map = (file, self._checked(file)), max(MAPPED, file.stat().st_size // 64)
        tensor: Tensor = self._open[1].get_tensor(name)
        self._left_to_map -= tensor.nbytes
        return tensor

    def check(self) -> None:
        """Open each file, which compares its size with its tensors and its names with the index. None is read."""
        for file in self.files:
            self._checked(file)

    def _checked(self, file: Path) -> Any:
        opened = _open_file(file)
        listed = {each for each, own in self.names.items() if own is file}
        if differing := sorted(listed.symmetric_difference(opened.keys())):
            raise InputError(
                f"{file} and its index differ in {len(differing)} tensors: {list_names(differing)}; download both again"
            )
        return opened


def _open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} can't be read as safetensors ({error}): download it again") from error


def _read_index(index: Path) -> dict[str, Path]:
    """Return the file of each tensor, in the order of the files."""
    folder = index.parent
    try:
        shard_of = dict(sorted(parse_json(index.read_bytes())["weight_map"].items(), key=lambda item: item[1]))
        files = {shard: folder / shard for shard in shard_of.values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} can't be read ({error!r}): download it again") from error
    for shard, file in files.items():
        if Path(shard).name != shard or not os.path.isfile(file):
            raise InputError(f"{folder} lacks {shard}, which its index names: the download is not complete")
    return {name: files[shard] for name, shard in shard_of.items()}


def open_weights(folder: Path) -> StoredTensors:
    """Open the weights of a folder: one safetensors file, or several with an index.

    Raises:
        InputError: See `StoredTensors`.
    """
    tensors = StoredTensors(lambda: folder)
    len(tensors)
    return tensors


def find_tensors(path: str, released: str, option: str = "--model.backbone.path") -> StoredTensors:
    """Return the tensors of a local path or a hub id, see `find_folder`. They are located when they are needed."""
    return StoredTensors(lambda: find_folder(path, released, option))


class TensorView(LazyTensors):
    """Tensors under other names, in files or in memory."""

    names: Mapping[str, str]  # names here -> names in `tensors`

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    @property
    def files(self) -> tuple[Path, ...]:  # type: ignore[override]
        """See `LazyTensors`."""
        return files_of(self.tensors)

    @property
    def is_stored(self) -> bool:  # type: ignore[override]
        """See `LazyTensors`."""
        return is_stored(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[self.names[name]]

    def full_name(self, name: str) -> str:
        """Return the name in the file, even for a tensor that is missing there."""
        return full_name(self.tensors, self.names.get(name, name))


class TensorsUnder(TensorView):
    """The tensors under a prefix, with the prefix removed from their names."""

    def __init__(self, tensors: Tensors, prefix: str) -> None:
        super().__init__(tensors)
        self.prefix = prefix

    @cached_property
    def names(self) -> dict[str, str]:  # type: ignore[override]
        """See `TensorView`."""
        return {name.removeprefix(self.prefix): name for name in self.tensors if name.startswith(self.prefix)}

    def full_name(self, name: str) -> str:
        """See `TensorView`."""
        return full_name(self.tensors, self.prefix + name)


class FirstNames(TensorView):
    """Tensors by their first names, where some have a second name. If a file holds both, the first one counts.

    Args:
        tensors: Tensors by either name.
        first_of: Maps prefixes of second names to prefixes of first names.
    """

    def __init__(self, tensors: Tensors, first_of: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.first_of = first_of

    @cached_property
    def names(self) -> dict[str, str]:  # type: ignore[override]
        """See `TensorView`."""
        first = {self.first(name): name for name in self.tensors}
        return first | {name: name for name in self.tensors if self.first(name) == name}

    def first(self, name: str) -> str:
        """Return the first name of a tensor, given either name."""
        return replace_prefix(name, self.first_of)


def replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """Replace the first matching prefix of a name. A name without a match is unchanged."""
    return next((new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)), name)


def full_name(tensors: Tensors, name: str) -> str:
    """Return the name of a tensor in its file."""
    return tensors.full_name(name) if isinstance(tensors, TensorView) else name


def is_stored(tensors: Tensors) -> bool:
    """Return whether tensors are read from files, which may not have been opened yet."""
    return isinstance(tensors, LazyTensors) and tensors.is_stored


def first_tensor(tensors: Tensors) -> Tensor:
    """Return a tensor that represents the dtype and device of all. Empty if there is none."""
    return next(iter(tensors.values()), torch.empty(0))


def files_of(tensors: Tensors) -> tuple[Path, ...]:
    """Return the files that tensors are read from. Empty for tensors in memory."""
    return getattr(tensors, "files", ())


def source_path(tensors: Tensors) -> str:
    """Return the file that tensors are read from, or the folder of several files, for error messages."""
    files = files_of(tensors)
    return str(files[0] if len(files) == 1 else files[0].parent) if files else "the weights"


def list_names(names: list[str]) -> str:
    """Return the first names and the number of others, for error messages."""
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


# ---- Into a model ---------------------------------------------------------------------------------------------------


class NameTable(NamedTuple):
    """The names of a module's tensors in a released file and in the module.

    Attributes:
        current: Maps an official name, possibly of another version, to the names here. Several names share the tensor's
            rows equally.
        official: The inverse map.
    """

    current: Callable[[str], tuple[str, ...]]
    official: Callable[[str], str]

    @classmethod
    def by_prefix(cls, layout: Layout) -> NameTable:
        """Return the table of names that differ in their prefixes alone."""
        official = {ours: theirs for theirs, ours in layout.items()}
        return cls(lambda name: (replace_prefix(name, layout),), lambda name: replace_prefix(name, official))


SAME_NAMES = NameTable(lambda name: (name,), lambda name: name)


def skip_none(name: str) -> bool:
    """Return False: every official tensor is read."""
    return False


@dataclass(frozen=True)
class ReleasedWeights:
    """The weights that a module is loaded from.

    Attributes:
        tensors: Tensors by official names, in files or in memory.
        what: Name of the model, for error messages.
        names: Maps between official names and the module's names.
        is_skipped: Whether an official tensor is neither read nor required.
        check: Raises InputError for tensors of another model.
    """

    tensors: Tensors
    what: str
    names: NameTable = SAME_NAMES
    is_skipped: Callable[[str], bool] = skip_none
    check: Callable[[], None] | None = None


def builds_shapes_only() -> bool:
    """Return whether new tensors are on the meta device, so no weights are read."""
    return torch.get_default_device().type == "meta"


_leaves_unread: ContextVar[bool] = ContextVar("leaves_unread", default=False)


@contextmanager
def leave_unread(is_left: bool = True) -> Iterator[None]:
    """Defer reading weights from files for modules that are built inside, until `read_weights` is called."""
    token = _leaves_unread.set(is_left)
    try:
        yield
    finally:
        _leaves_unread.reset(token)


def load_weights(module: nn.Module, weights: ReleasedWeights, device: torch.device | None = None) -> None:
    """Load a module that was built on the meta device. Within `leave_unread`, `read_weights` does it later.

    Args:
        module: The module. Its parameters keep their dtype and whether they are trained. Tied weights stay tied.
        weights: The weights. Tensors in memory are copied.
        device: Device of the weights. None is the default device, and for tensors in memory their own device. On the
            meta device, files are left to `read_weights`, and for tensors in memory only names and shapes are checked.

    Raises:
        InputError: Tensors are missing, unexpected, duplicated, of another shape, or not floating-point.
    """
    from_files, own = is_stored(weights.tensors), tuple(module.state_dict())
    if device is None:
        device = torch.get_default_device() if from_files else first_tensor(weights.tensors).device
    if from_files and (device.type == "meta" or _leaves_unread.get()):
        module.__dict__.setdefault(UNREAD, []).append((weights, own))
        return
    _assign(module, weights, own, device)
    _refuse_empty(module, device)


def read_weights(module: M) -> M:
    """Load weights that were left unread, onto the default device or into the shards that a module has.

    On the meta device only names and shapes are checked.

    Raises:
        InputError: See `load_weights`, or a tensor on the meta device is in no file.
    """
    device, is_read = torch.get_default_device(), False
    for part in module.modules():
        for weights, own in part.__dict__.pop(UNREAD, ()):
            _assign(part, weights, own, device)
            is_read = True
    if is_read:
        _refuse_empty(module, device)
    return module


def _assign(module: nn.Module, weights: ReleasedWeights, own: Collection[str], device: torch.device) -> None:
    """Read the tensors of a module one at a time, and replace its own by them.

    `own` are the names of its tensors when it was built. Its layers may have received adapters since.
    """
    if weights.check is not None:
        weights.check()
    tensors, what = weights.tensors, weights.what
    current_names, official_name = weights.names
    # 1. Targets of the tensors. LoRA moves a layer's weight into its `base_layer`. A tied weight has several places.
    state = module.state_dict(keep_vars=True)
    targets = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    places: dict[int, list[str]] = {}
    for name, tensor in state.items():
        places.setdefault(id(tensor), []).append(name)
    expected = dict.fromkeys(name for name in map(official_name, own) if not weights.is_skipped(name))
    missing = dict(expected)
    # 2. Convert each tensor to the dtype of its target.
    loaded: dict[str, Tensor] = {}
    problems: dict[str, list[str]] = {
        kind: [] for kind in ("missing", "unexpected", "under two names", "misshapen", "no floating-point numbers")
    }
    for name in progress(tensors, f"loading {what}", "tensors"):
        if weights.is_skipped(name):
            continue
        ours = current_names(name)
        official = official_name(ours[0])  # the file may use the names of another version
        if official not in missing:
            problems["under two names" if official in expected else "unexpected"].append(full_name(tensors, name))
            continue
        del missing[official]
        tensor, parts = tensors[name], [targets[part] for part in ours]
        tensor = tensor if tensor.ndim else tensor[None]  # a number, as a GeoThinker's gate
        shape = list(parts[0].shape)
        shape[0] *= len(parts)
        if list(tensor.shape) != shape:
            problems["misshapen"].append(f"{full_name(tensors, name)} {list(tensor.shape)} instead of {shape}")
            continue
        if tensor.dtype not in FLOATS:  # quantized: the values alone are not the weights
            problems["no floating-point numbers"].append(f"{full_name(tensors, name)} {tensor.dtype}")
            continue
        for target, rows in zip(parts, tensor.detach().chunk(len(parts)), strict=True):
            loaded |= dict.fromkeys(places[id(target)], _like(target, rows, device))
    problems["missing"] = [full_name(tensors, name) for name in missing]
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {list_names(names)}" for kind, names in problems.items() if names)
        raise InputError(f"the weights don't fit this {what}: {found}; check the config and {source_path(tensors)}")
    # 3. Assign. Tied weights are one parameter under several names, and stay so. `load_state_dict` would compare
    # shapes, and four bits have others.
    for name, read in loaded.items():
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, read)


def is_quantized(weight: Tensor) -> bool:
    """Return whether bitsandbytes keeps a weight in four bits, or will when it is read."""
    return hasattr(weight, "quant_state")


def _like(target: Tensor, tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a tensor that can replace another one, with its dtype, shards and requires_grad."""
    copied = tensor.to(device, target.dtype, copy=True, memory_format=torch.contiguous_format)
    if is_quantized(target):  # bitsandbytes quantizes a weight that is moved to its device
        return type(target)(copied, **target.__dict__).to(device)
    if isinstance(target, DTensor):
        copied = distribute_tensor(copied, target.device_mesh, target.placements, src_data_rank=None)
    return nn.Parameter(copied, target.requires_grad) if isinstance(target, nn.Parameter) else copied


def _refuse_empty(module: nn.Module, device: torch.device) -> None:
    """Raise InputError for tensors on the meta device that were never read."""
    if device.type == "meta":
        return
    empty = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if empty:
        raise InputError(
            f"{len(empty)} weights were built without values, and are in no file: {list_names(empty)}; build them "
            'under torch.device("cpu"), which gives them values'
        )


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor of a sharded one (`DTensor`). A collective, so every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return this process's shard of a whole tensor, sharded like `target`. Processes do not communicate."""
    if not isinstance(target, DTensor) or isinstance(tensor, DTensor):
        return tensor
    on_device = tensor.to(target.device).reshape(target.shape)
    return distribute_tensor(on_device, target.device_mesh, target.placements, src_data_rank=None)
