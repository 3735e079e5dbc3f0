"""Checkpoints of trained weights: their files, the frozen weights that they omit, and initial weights of a training.

A checkpoint holds what was trained, and what no released file can restore. Frozen weights are read from their released
files again. The checkpoint records the fingerprints of these files.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from zoo.configuration import changed_options
from zoo.errors import InputError
from zoo.files.atomic_io import replace_file, write_error
from zoo.files.fingerprint import file_fingerprint
from zoo.weights.load import builds_shapes_only

CONFIG_KEY = "task"  # key in a checkpoint: the task's configuration
RUN = "run"  # key in a checkpoint: what the application records, such as the run's config
FROZEN = "frozen_weights"  # key in a checkpoint: `frozen_weights` of its model
TRAINING_ALONE = "training_alone"  # key in a checkpoint: names of tensors that no answer depends on


# ---- Files: written atomically, and read memory-mapped without running code in them ----------------------------------


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a checkpoint atomically.

    The new file is read back before it replaces the former one, so a file that `read_checkpoint` rejects is never kept.

    Raises:
        InputError: The file can't be written, or holds types other than tensors and plain values. The former file is
            kept.
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
    """Raise InputError for a file that is not a checkpoint, or was not completely written."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is cut short, or no checkpoint: copy it again, give another one, or train anew")


def read_checkpoint(path: str | Path, map_location: Any = "cpu", required: str = "state_dict") -> dict[str, Any]:
    """Read a checkpoint. The tensors stay on disk until they are used.

    Only tensors and plain values are unpickled, so a file of unknown origin can't run code.

    Args:
        path: The file.
        map_location: See `torch.load`.
        required: An entry that the checkpoint must have.

    Raises:
        InputError: The file is absent, damaged, holds anything but tensors and plain values, or lacks the entry.
    """
    refuse_damaged(Path(path))
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except UnpicklingError as error:
        raise InputError(
            f"{path} holds {_refused_type(error)}, not only tensors and plain values; loading it could run code of a "
            "stranger, so it is not read: take a checkpoint that this project wrote"
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} can't be read as a checkpoint: {reason}") from error
    if not isinstance(content, dict) or required not in content:
        raise InputError(f"{path} is no checkpoint: it has no {required}")
    state = content.get("state_dict", {})
    if not isinstance(state, dict) or not all(type(k) is str and isinstance(v, Tensor) for k, v in state.items()):
        raise InputError(f"{path} is damaged: its state_dict is not of named tensors")
    return content


def _refused_type(error: UnpicklingError) -> str:
    """Return the type that torch's message names. The message itself recommends loading the file anyway."""
    words = str(error).split()
    after = next((words[i + 1] for i, word in enumerate(words[:-1]) if word == "GLOBAL"), "")
    return after or "an object"


# ---- Frozen weights, which can be restored from released files -------------------------------------------------------


def saved_names(module: nn.Module, restored_by_files: Callable[[str], bool]) -> set[str]:
    """Return the names of trained tensors, and of tensors that no released file can restore.

    A tied weight is included under all of its names.
    """
    trained = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    return trained | {name for name in module.state_dict() if not restored_by_files(name)}


def check_loaded(result: Any, wanted: set[str], source: str) -> None:
    """Check the result of `load_state_dict`.

    Raises:
        InputError: A tensor of `wanted` is missing, or a tensor is unexpected.
    """
    missing = sorted(wanted.intersection(result.missing_keys))
    if missing or result.unexpected_keys:
        raise InputError(
            f"{source} is of another model: missing {missing[:5]} ({len(missing)}), unexpected "
            f"{result.unexpected_keys[:5]} ({len(result.unexpected_keys)})"
        )


def released_sources(model: Any) -> dict[str, tuple[str, tuple[Path, ...]]]:
    """Return hub id or path, and files, of each part with released weights."""
    sources: dict[str, tuple[str, tuple[Path, ...]]] = {}
    if model.loader.released_path is not None:
        sources["backbone"] = model.loader.released_path, model.loader.files
    if model.geometry is not None and model.geometry.path is not None:
        sources["geometry"] = model.geometry.path, model.geometry.files
    scale = None if model.geometry is None else model.geometry.scale_from
    if scale is not None and scale.path is not None:
        sources["scale"] = scale.path, scale.files
    return sources


def frozen_weights(model: Any) -> dict[str, dict[str, Any]]:
    """Return path and file fingerprints of each part (`backbone`, `geometry`, `scale`) that is not saved as a whole.

    The fingerprints use the size and samples of each file, see `zoo.files.fingerprint`, which takes milliseconds. A
    model that is built by shapes only has none.
    """
    if builds_shapes_only():
        return {}
    parameters = list(model.named_parameters())
    every = {name.partition(".")[0] for name, _ in parameters}
    read = {name.partition(".")[0] for name, p in parameters if not p.requires_grad and model.restored_by_files(name)}
    sources = released_sources(model).items()
    # a cached geometry encoder has no parameters
    return fingerprints({part: source for part, source in sources if part in read or part not in every})


def fingerprints(sources: Mapping[str, tuple[str, Sequence[Path]]]) -> dict[str, dict[str, Any]]:
    """Return each part's path and the fingerprints of its files, given paths and files."""
    return {
        part: {"path": path, "files": [file_fingerprint(file) for file in files]}
        for part, (path, files) in sources.items()
    }


def check_frozen(recorded: Mapping[str, Any], found: Mapping[str, Any], source: str | Path) -> None:
    """Check that frozen weights equal those that a model was trained with. Their location does not matter.

    Args:
        recorded: `frozen_weights` of the model when it was trained.
        found: `frozen_weights` of the model that the trained weights are loaded into.
        source: The checkpoint or folder, for the error message.

    Raises:
        InputError: The files of a part have other fingerprints.
    """
    for part in recorded.keys() & found.keys():
        before, now = recorded[part], found[part]
        if before["files"] != now["files"]:
            raise InputError(
                f"{source} was trained with the frozen {part} {before['path']} ({', '.join(before['files'])}), and "
                f"{now['path']} now holds another ({', '.join(now['files'])}): restore those files, or train again"
            )


# ---- Initial weights of a training -----------------------------------------------------------------------------------


def read_start(task: Any, path: str, parts: Collection[str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Read the checkpoint that a task starts from, and describe the parts that differ, one line each.

    Parts that the checkpoint lacks keep the task's own weights, so a fusion, a view mixer or an objective can be added
    to a trained model. A part with only some of its tensors is not completed, and loading it is an error. Of tensors
    that the task lacks, only those that no answer depends on are dropped, such as heads of other objectives.

    Args:
        task: The task, which keeps its own weights elsewhere.
        path: The checkpoint.
        parts: Fields of `LearningRates`. Only tensors of these parts are read, and the model may differ in all others.
            None reads all tensors.

    Raises:
        InputError: The checkpoint can't be read, lacks one of `parts`, or was trained with other frozen weights.
    """
    checkpoint = read_checkpoint(path)
    saved, state = saved_names(task, task.restored_by_files), task.state_dict()
    if parts is not None:
        return _only(checkpoint, {name: state[name] for name in saved}, task.part_of, path, parts)
    check_frozen(checkpoint.get(FROZEN, {}), task.frozen_weights, path)
    left = set(checkpoint.get(TRAINING_ALONE, ())) & checkpoint["state_dict"].keys() - state.keys()
    given = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name not in left}
    own = {name: tensor for name, tensor in state.items() if name in saved}
    new = _parts(own.keys() - given.keys()) - _parts(given)
    differences = []
    if new:
        differences.append(f"{path} lacks {', '.join(sorted(new))}, which start from their own weights")
    configs = {"model": checkpoint.get(CONFIG_KEY)}, {"model": task.configuration}
    told = (*(f"model.{part}" for part in (*new, *_parts(left))), *task.option_effects.harmless("answers"))
    if all(each["model"] for each in configs) and (changed := changed_options(*configs, told)):
        differences.append(f"{path} was trained with another {', '.join(changed)}")
    if left:
        differences.append(f"{path} has weights for training alone, left behind: {', '.join(sorted(_parts(left)))}")
    kept = {name: tensor for name, tensor in own.items() if _part(name) in new}
    return {**checkpoint, "state_dict": {**given, **kept}}, differences


def _only(
    checkpoint: dict[str, Any],
    own: Mapping[str, Tensor],
    part_of: Callable[[str], str],
    path: str,
    parts: Collection[str],
) -> tuple[dict[str, Any], list[str]]:
    """Return a checkpoint with a task's own tensors, of which those of some parts are replaced, see `read_start`."""
    given = {name: tensor for name, tensor in checkpoint["state_dict"].items() if part_of(name) in parts}
    if lacking := sorted(set(parts).difference(map(part_of, given))):
        found = ", ".join(sorted(set(map(part_of, checkpoint["state_dict"]))))
        raise InputError(f"--model.initial_parts {lacking}: {path} has no weights of these parts, but of {found}")
    kept = {name: tensor for name, tensor in own.items() if part_of(name) not in parts}
    return {**checkpoint, "state_dict": {**given, **kept}}, [f"{path} gives only its {', '.join(sorted(parts))}"]


def _parts(names: Iterable[str]) -> set[str]:
    return {_part(name) for name in names}


def _part(name: str) -> str:
    """Return the part of the model that a tensor belongs to. Each objective is a separate part."""
    part, _, rest = name.removeprefix("model.").partition(".")
    return f"{part}.{rest.partition('.')[0]}" if part == "objectives" else part
