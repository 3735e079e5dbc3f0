"""The weights that a training starts from, of a run of the same model or of one that lacks some of its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_info

from zoo.errors import add_file_to_errors
from zoo.weights.checkpoint_file import read_checkpoint
from zoo.weights.frozen import FROZEN, check_frozen, saved_names

if TYPE_CHECKING:
    from zoo.tasks.video_qa import VideoQATask


def start_from(task: VideoQATask, path: str) -> None:
    """Give a task the weights of a checkpoint. Parts of which it has no tensor start anew, and are named in a line.

    So a fusion, a view mixer or an objective is added to a trained model. A part of which it has some tensors, or has
    others, is not the same part.

    Args:
        task: Attached to a Trainer.
        path: The checkpoint.

    Raises:
        InputError: The checkpoint is of another model.
    """
    checkpoint = read_checkpoint(path)
    check_frozen(checkpoint.get(FROZEN, {}), task.frozen_weights, path)
    saved = saved_names(task, task.restored_by_files)
    own = {name: tensor for name, tensor in task.state_dict().items() if name in saved}
    given: dict[str, Any] = checkpoint["state_dict"]
    new = {_part(name) for name in own.keys() - given.keys()} - {_part(name) for name in given}
    with add_file_to_errors(path):
        kept = {name: tensor for name, tensor in own.items() if _part(name) in new}
        task.trainer.strategy.load_model_state_dict({**checkpoint, "state_dict": {**given, **kept}})
    if new:
        rank_zero_info(f"{path} has no {', '.join(sorted(new))}: trained from random weights")


def _part(name: str) -> str:
    """The child of the model that a tensor belongs to."""
    return name.removeprefix("model.").partition(".")[0]
