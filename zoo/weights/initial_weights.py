"""The weights that a training starts from, of a run of the same model or of one that lacks some of its parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zoo.weights.checkpoint_file import read_checkpoint
from zoo.weights.frozen import FROZEN, check_frozen, saved_names

TRAINING_ALONE = "training_alone"  # of a checkpoint: names of tensors that no answer depends on


def read_start(task: Any, path: str) -> tuple[dict[str, Any], list[str]]:
    """Read the checkpoint that a task starts from, and describe the parts in which the two differ, a line each.

    Parts that the checkpoint lacks have the task's own weights: so a fusion, a view mixer or an objective is added to a
    trained model. A part with some of its tensors alone is not completed: loading it is an error. Of what the task
    lacks only tensors that no answer depends on are left behind, such as the heads of other objectives.

    Args:
        task: A `VideoQATask`.
        path: The checkpoint.

    Raises:
        InputError: It can't be read, or was trained with other frozen weights.
    """
    checkpoint = read_checkpoint(path)
    check_frozen(checkpoint.get(FROZEN, {}), task.frozen_weights, path)
    saved, state = saved_names(task, task.restored_by_files), task.state_dict()
    left = set(checkpoint.get(TRAINING_ALONE, ())) & checkpoint["state_dict"].keys() - state.keys()
    given = {name: tensor for name, tensor in checkpoint["state_dict"].items() if name not in left}
    own = {name: tensor for name, tensor in state.items() if name in saved}
    new = _parts(own.keys() - given.keys()) - _parts(given)
    differences = []
    if new:
        differences.append(f"{path} lacks {', '.join(sorted(new))}, which start from their own weights")
    if left:
        differences.append(f"{path} has weights for training alone, left behind: {', '.join(sorted(_parts(left)))}")
    kept = {name: tensor for name, tensor in own.items() if _part(name) in new}
    return {**checkpoint, "state_dict": {**given, **kept}}, differences


def _parts(names: Iterable[str]) -> set[str]:
    return {_part(name) for name in names}


def _part(name: str) -> str:
    """The child of the model that a tensor belongs to; of the objectives each is a part of its own."""
    part, _, rest = name.removeprefix("model.").partition(".")
    return f"{part}.{rest.partition('.')[0]}" if part == "objectives" else part
