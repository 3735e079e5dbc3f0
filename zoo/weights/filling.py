"""Official tensors copied into a model one at a time, whatever their names, dtype, device and shards."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn

from zoo.errors import InputError
from zoo.progress import progress
from zoo.weights.lazy_tensors import Tensors, full_name, list_names, source_path
from zoo.weights.sharded_tensors import shard_like

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_into(
    state: Tensors,
    tensors: Tensors,
    *,
    what: str,
    current_names: Callable[[str], tuple[str, ...]] = lambda name: (name,),
    official_name: Callable[[str], str] = lambda name: name,
    skip: tuple[str, ...] = (),
) -> None:
    """Copy official tensors into a model one at a time, converted to the model's dtype and device.

    Args:
        state: The model's tensors to fill, by the names of this project.
        tensors: By official names.
        what: The model, for error messages.
        current_names: Maps an official name to the names of this project; several share its rows equally.
        official_name: The inverse of `current_names`.
        skip: Prefixes of official names to ignore.

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
        found = "; ".join(f"{len(names)} {kind}: {list_names(names)}" for kind, names in problems.items() if names)
        raise InputError(f"the weights don't fit this {what}: {found}; check the config and {source_path(tensors)}")


class TensorsOf(Tensors):
    """The tensors of a module by the names of `state_dict`, looked up when they are accessed.

    Adapters change the names afterwards, and sharding replaces the tensors.

    Args:
        module: The module.
        without: Names to leave out.
    """

    def __init__(self, module: nn.Module, without: Collection[str] = ()) -> None:
        self._places = {
            f"{prefix}.{name}".lstrip("."): (part, name)
            for prefix, part in module.named_modules()
            for name, tensor in {**part._parameters, **part._buffers}.items()
            if tensor is not None and name not in part._non_persistent_buffers_set
        }
        for name in without:
            del self._places[name]

    def __getitem__(self, name: str) -> Tensor:
        part, attribute = self._places[name]
        tensor: Tensor = getattr(part, attribute)
        return tensor.detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
