"""The weights that a training starts from, of a run of the same model or of one that lacks some of its parts."""

from __future__ import annotations

from typing import Any

from zoo.weights.checkpoint_file import read_checkpoint
from zoo.weights.frozen import FROZEN, check_frozen, saved_names


def read_start(task: Any, path: str) -> tuple[dict[str, Any], list[str]]:
    """Read the checkpoint that a task starts from, and name the parts that it lacks: they have the task's own weights.

    So a fusion, a view mixer or an objective is added to a trained model. A part with some of its tensors alone is not
    completed: loading it is an error.

    Args:
        task: A `VideoQATask`.
        path: The checkpoint.

    Raises:
        InputError: It can't be read, or was trained with other frozen weights.
    """
    checkpoint = read_checkpoint(path)
    check_frozen(checkpoint.get(FROZEN, {}), task.frozen_weights, path)
    saved = saved_names(task, task.restored_by_files)
    own = {name: tensor for name, tensor in task.state_dict().items() if name in saved}
    given = checkpoint["state_dict"]
    new = {_part(name) for name in own.keys() - given.keys()} - {_part(name) for name in given}
    kept = {name: tensor for name, tensor in own.items() if _part(name) in new}
    return {**checkpoint, "state_dict": {**given, **kept}}, sorted(new)


def _part(name: str) -> str:
    """The child of the model that a tensor belongs to."""
    return name.removeprefix("model.").partition(".")[0]
