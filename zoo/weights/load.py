"""Released weights: the folder they lie in, its tensors by their official names, and the way into a model.

1. **Folders.** A path is a local folder, or the id of a Hugging Face repository that is downloaded.
2. **Tensors.** A mapping from official names; each tensor is read from its safetensors file when it is accessed.
3. **Into a model.** A part with released weights is built on the meta device, where tensors have a shape and no memory.
   `load_weights` reads the tensors that a table of names gives it, converts each to the dtype that the part has, and
   assigns it in place of the empty one.

Under `torch.device("meta")`, which is PyTorch's own way to build a model by its shapes, no file is opened: `plan`
counts such models. A model that FSDP2 shards is built within `leave_unread`, and `read_weights` reads into its shards.
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
    Tensors = Mapping  # a check of its items at run time would open files

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # no pickle, no code
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LISTED = 10  # names of each kind that an error shows
MAPPED = 16 * 2**20  # bytes of a file that are read before it is opened anew, or a 64th of a large file
UNREAD = "_unread_weights"  # attribute of a module whose weights `read_weights` will read
M = TypeVar("M", bound=nn.Module)


# ---- Folders --------------------------------------------------------------------------------------------------------


def find_folder(path: str, released: str, option: str = "--model.backbone.path", *, with_weights: bool = True) -> Path:
    """Return the folder of a local path or a hub id; the latter is downloaded, without pickle or code.

    Args:
        path: A folder, or a hub id, which may go on with a folder of the repository:
            `WHB139426/GeoVR/GeoVR-VGGT-Qwen3-VL-2B`.
        released: An example of a hub id, for the error message.
        option: Which names the folder, for the error message.
        with_weights: Whether more than the JSON files is needed.

    Raises:
        InputError: There is none; the message has the command that downloads it.
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
    """Download the files of a hub repository, or of a folder in it, that match `files`, and return their folder.

    Raises:
        FileNotFoundError: No such repository, neither in the local cache nor on the hub, or no network.
    """
    repository, inside = _split_hub_id(hub_id)
    patterns = [f"{inside}/{pattern}" for pattern in files] if inside else files
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns)) / inside
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"{hub_id}: {error}") from error


def _split_hub_id(hub_id: str) -> tuple[str, str]:
    """Return the repository of a hub id, and the folder in it; empty for the repository itself."""
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
    """Named tensors, each of which is read when it is accessed.

    Attributes:
        names: Of the tensors, in the order that reads each file once.
        files: That they are read from.
        is_stored: Whether they are in files, and not in memory; opens none.
    """

    names: Mapping[str, object]
    files: tuple[Path, ...]
    is_stored: bool

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor: ...

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class StoredTensors(LazyTensors):
    """The tensors of a safetensors file, or of a folder with one or with several and an index.

    Args:
        find: Returns the file or the folder, and is called when a name is first asked for. A model that is built by its
            shapes needs no files, and downloads none.

    Raises:
        InputError: When names or tensors are asked for: the folder has neither file nor index, one of them can't be
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
        """Return a tensor, which is a part of the mapped file: copy it to keep it."""
        file = self.names[name]
        # What was read of a mapped file counts as memory of the process until the file is closed: a model of one file
        # would take twice its size.
        if self._open is None or self._open[0] is not file or self._left_to_map < 0:
            self._open = None
            self._open, self._left_to_map = (file, _open_file(file)), max(MAPPED, file.stat().st_size // 64)
            listed = {each for each, own in self.names.items() if own is file}
            if differing := sorted(listed.symmetric_difference(self._open[1].keys())):
                raise InputError(
                    f"{file} and its index differ in {len(differing)} tensors: {list_names(differing)}; download both "
                    "again"
                )
        tensor: Tensor = self._open[1].get_tensor(name)
        self._left_to_map -= tensor.nbytes
        return tensor


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
    """Return the tensors of a local path or a hub id, see `find_folder`; they are found when they are needed."""
    return StoredTensors(lambda: find_folder(path, released, option))


class TensorView(LazyTensors):
    """Tensors by other names, in files or in memory."""

    names: Mapping[str, str]  # the names here, and those of `tensors`

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
        """Return the name in the file, also of a tensor that is missing there."""
        return full_name(self.tensors, self.names.get(name, name))


class TensorsUnder(TensorView):
    """The tensors under a prefix, by names without it."""

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
    """Tensors of which some have a second name, by the first; where a file holds both, the first one counts.

    Args:
        tensors: By either name.
        first_of: The prefix of the first name for that of the second.
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
        """Return the first name of a tensor, of either."""
        return replace_prefix(name, self.first_of)


def replace_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    """Return a name with the first of these prefixes that it has replaced; another name as it is."""
    return next((new + name.removeprefix(old) for old, new in prefixes.items() if name.startswith(old)), name)


def full_name(tensors: Tensors, name: str) -> str:
    """Return the name of a tensor in its file."""
    return tensors.full_name(name) if isinstance(tensors, TensorView) else name


def is_stored(tensors: Tensors) -> bool:
    """Return whether tensors are read from files, which may not have been opened yet."""
    return isinstance(tensors, LazyTensors) and tensors.is_stored


def first_tensor(tensors: Tensors) -> Tensor:
    """Return some tensor, whose dtype and device the others share; an empty one where there is none."""
    return next(iter(tensors.values()), torch.empty(0))


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


# ---- Into a model ---------------------------------------------------------------------------------------------------


class NameTable(NamedTuple):
    """The names of a module's tensors in a released file, and here.

    Attributes:
        current: Maps an official name, which may be that of another version, to the names here; several share the
            tensor's rows equally.
        official: The inverse.
    """

    current: Callable[[str], tuple[str, ...]]
    official: Callable[[str], str]


SAME_NAMES = NameTable(lambda name: (name,), lambda name: name)


@dataclass(frozen=True)
class ReleasedWeights:
    """What a module is loaded from.

    Attributes:
        tensors: By official names, in files or in memory.
        what: The model, for error messages.
        names: Official names, and those of the module.
        is_skipped: Whether the tensor of an official name is neither read nor required.
        check: Raises InputError for tensors of another model.
    """

    tensors: Tensors
    what: str
    names: NameTable = SAME_NAMES
    is_skipped: Callable[[str], bool] = lambda name: False
    check: Callable[[], None] | None = None


def builds_shapes_only() -> bool:
    """Return whether new tensors are on the meta device, so that no weights are read."""
    return torch.get_default_device().type == "meta"


_leaves_unread: ContextVar[bool] = ContextVar("leaves_unread", default=False)


@contextmanager
def leave_unread(is_left: bool = True) -> Iterator[None]:
    """Leave the weights in files of the modules that are built within to `read_weights`."""
    token = _leaves_unread.set(is_left)
    try:
        yield
    finally:
        _leaves_unread.reset(token)


def load_weights(module: nn.Module, weights: ReleasedWeights, device: torch.device | None = None) -> None:
    """Load a module that was built on the meta device; within `leave_unread`, `read_weights` does so later.

    Args:
        module: Its parameters keep their dtype, and whether they are trained. Tied weights stay tied.
        weights: Tensors in memory are copied.
        device: Of the weights; None is that of new tensors, and for tensors in memory their own. On the meta device
            files are left to `read_weights`, and of tensors in memory names and shapes are checked.

    Raises:
        InputError: Lists the tensors that are missing, unexpected, duplicated, of another shape, or not floating-point.
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
    """Load the weights that were left unread: onto the device of new tensors, or into the shards that a module has.

    On the meta device names and shapes are checked.

    Raises:
        InputError: See `load_weights`; or a tensor that is on the meta device, and in no file.
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
    """Read the tensors of a module one at a time, and put them in place of its own.

    Args:
        module: Its layers may have got adapters since it was built.
        weights: What it is loaded from.
        own: Names of its tensors when it was built.
        device: Of the weights.
    """
    if weights.check is not None:
        weights.check()
    tensors, what = weights.tensors, weights.what
    current_names, official_name = weights.names
    # 1. Where the tensors go. LoRA moves a layer's weight into its `base_layer`; a tied weight has several places.
    state = module.state_dict(keep_vars=True)
    targets = {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if ".lora_" not in name}
    places: dict[int, list[str]] = {}
    for name, tensor in state.items():
        places.setdefault(id(tensor), []).append(name)
    expected = dict.fromkeys(name for name in map(official_name, own) if not weights.is_skipped(name))
    missing = dict(expected)
    # 2. Each tensor in the dtype of its target.
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
        shape = list(parts[0].shape)
        shape[0] *= len(parts)
        if list(tensor.shape) != shape:
            problems["misshapen"].append(f"{full_name(tensors, name)} {list(tensor.shape)} instead of {shape}")
            continue
        if tensor.dtype not in FLOATS:  # quantized: the numbers alone are not the weights
            problems["no floating-point numbers"].append(f"{full_name(tensors, name)} {tensor.dtype}")
            continue
        for target, rows in zip(parts, tensor.detach().chunk(len(parts)), strict=True):
            loaded |= dict.fromkeys(places[id(target)], _like(target, rows, device))
    problems["missing"] = [full_name(tensors, name) for name in missing]
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {list_names(names)}" for kind, names in problems.items() if names)
        raise InputError(f"the weights don't fit this {what}: {found}; check the config and {source_path(tensors)}")
    # 3. Tied weights are one parameter under several names, and stay so.
    module.load_state_dict(loaded, strict=False, assign=True)


def _like(target: Tensor, tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy of a tensor that can take the place of another one: its dtype, shards and gradients."""
    copied = tensor.to(device, target.dtype, copy=True, memory_format=torch.contiguous_format)
    if isinstance(target, DTensor):
        copied = distribute_tensor(copied, target.device_mesh, target.placements, src_data_rank=None)
    return nn.Parameter(copied, target.requires_grad) if isinstance(target, nn.Parameter) else copied


def _refuse_empty(module: nn.Module, device: torch.device) -> None:
    """Raise InputError for tensors that were built on the meta device, and that nothing has read."""
    if device.type == "meta":
        return
    empty = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if empty:
        raise InputError(
            f"{len(empty)} weights were built without values, and are in no file: {list_names(empty)}; build them "
            'under torch.device("cpu"), which gives them values'
        )


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor in shards (`DTensor`); a collective, so every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return the part of a whole tensor that this process holds of `target`; no process communicates."""
    if not isinstance(target, DTensor) or isinstance(tensor, DTensor):
        return tensor
    on_device = tensor.to(target.device).reshape(target.shape)
    return distribute_tensor(on_device, target.device_mesh, target.placements, src_data_rank=None)
