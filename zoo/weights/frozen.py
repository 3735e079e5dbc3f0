"""Weights that a checkpoint leaves out, since released files restore them: which, from where, their fingerprints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from zoo.errors import InputError
from zoo.files.fingerprint import file_fingerprint
from zoo.weights.deferred import builds_shapes_only

if TYPE_CHECKING:
    from zoo.model import SpatialVLM

FROZEN = "frozen_weights"  # of a checkpoint: `frozen_weights` of its model


def saved_names(module: nn.Module, restored_by_files: Callable[[str], bool]) -> set[str]:
    """Return the names of the trained tensors, and of those that no released file restores.

    A tied weight has all of its names.
    """
    trained = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    return trained | {name for name in module.state_dict() if not restored_by_files(name)}


def check_loaded(result: Any, wanted: set[str], source: str) -> None:
    """Check the result of `load_state_dict`.

    Raises:
        InputError: A tensor of `wanted` is missing, or one is unexpected.
    """
    missing = sorted(wanted.intersection(result.missing_keys))
    if missing or result.unexpected_keys:
        raise InputError(
            f"{source} is of another model: missing {missing[:5]} ({len(missing)}), unexpected "
            f"{result.unexpected_keys[:5]} ({len(result.unexpected_keys)})"
        )


def released_sources(model: SpatialVLM) -> dict[str, tuple[str, tuple[Path, ...]]]:
    """Return hub id or path, and files, of the released weights of each part that has some of its own."""
    sources: dict[str, tuple[str, tuple[Path, ...]]] = {}
    if model.loader.released_path is not None:
        sources["backbone"] = model.loader.released_path, model.loader.files
    if model.geometry is not None and model.geometry.path is not None:
        sources["geometry"] = model.geometry.path, model.geometry.files
    scale = None if model.geometry is None else model.geometry.scale_from
    if scale is not None and scale.path is not None:
        sources["scale"] = scale.path, scale.files
    return sources


def frozen_weights(model: SpatialVLM) -> dict[str, dict[str, Any]]:
    """Return path and fingerprints of the files of each part (`backbone`, `geometry`, `scale`) not saved as a whole.

    The fingerprints are of size, head and tail of each file, see `zoo.files.fingerprint`: some milliseconds. A model
    that is built by its shapes has none.
    """
    if builds_shapes_only():
        return {}
    parameters = list(model.named_parameters())
    every = {name.partition(".")[0] for name, _ in parameters}
    read = {name.partition(".")[0] for name, p in parameters if not p.requires_grad and model.restored_by_files(name)}
    sources = released_sources(model).items()
    # a cached geometry has no parameters
    return fingerprints({part: source for part, source in sources if part in read or part not in every})


def fingerprints(sources: Mapping[str, tuple[str, Sequence[Path]]]) -> dict[str, dict[str, Any]]:
    """Return the path of each part with the fingerprints of its files, given path and files."""
    return {
        part: {"path": path, "files": [file_fingerprint(file) for file in files]}
        for part, (path, files) in sources.items()
    }


def check_frozen(recorded: Mapping[str, Any], found: Mapping[str, Any], source: str | Path) -> None:
    """Check that frozen weights are those that a model was trained with, wherever their files lie.

    Args:
        recorded: `frozen_weights` of the model when it was trained.
        found: `frozen_weights` of the model that its trained weights are loaded into.
        source: The checkpoint or folder, for the error.

    Raises:
        InputError: The files of a part have other fingerprints; names both.
    """
    for part in recorded.keys() & found.keys():
        before, now = recorded[part], found[part]
        if before["files"] != now["files"]:
            raise InputError(
                f"{source} was trained with the frozen {part} {before['path']} ({', '.join(before['files'])}), and "
                f"{now['path']} now holds another ({', '.join(now['files'])}): restore those files, or train again"
            )
