"""Where the time of a training step goes, from Lightning's profiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.profilers import SimpleProfiler

from zoo.tasks import VideoQATask

FORWARD = ("vision", "geometry", "decoder")


class StepTimes(SimpleProfiler):
    """Times the parts of a step: `--trainer.profiler callbacks.StepTimes` prints a table at the end of `fit`.

    On a GPU each part waits for its kernels, so that steps are slower than without the profiler.

    Args:
        dirpath: folder of a file that gets the table.
        filename: its name; None prints the table.
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None) -> None:
        super().__init__(dirpath, filename)
        self._lightning_module: Any = None  # the Trainer sets it

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Times the parts of the model."""
        super().setup(stage, local_rank, log_dir)
        task: Any = self._lightning_module
        if stage == "fit" and isinstance(task, VideoQATask):
            model = task.model
            methods = ((model.backbone, "encode_vision"), (model, "_encode_geometry"), (model.backbone, "decode"))
            for name, (part, method) in zip(FORWARD, methods, strict=True):
                setattr(part, method, self._timed(name, getattr(part, method)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._lightning_module.training:  # in a validation
                return method(*args, **kwargs)
            with self.profile(name):
                return method(*args, **kwargs)

        return timed

    def start(self, action_name: str) -> None:
        """Waits for the GPU, then starts the clock."""
        _wait()
        super().start(action_name)

    def stop(self, action_name: str) -> None:
        """Waits for the GPU, then stops the clock."""
        _wait()
        super().stop(action_name)

    def seconds(self) -> dict[str, float]:
        """Mean seconds of each part of a batch, in its order; the optimizer's include clipping and callbacks."""
        batches = len(self.recorded_durations["run_training_batch"])

        def mean(ending: str) -> float:
            return sum(sum(each) for name, each in self.recorded_durations.items() if name.endswith(ending)) / batches

        if not batches:
            return {}
        step, forward, backward = (mean(name) for name in ("run_training_batch", ".training_step", ".backward"))
        forward_parts = {name: mean(name) for name in FORWARD}
        return {
            "data": mean("train_dataloader_next"),
            **forward_parts,
            "other forward": forward - sum(forward_parts.values()),
            "backward": backward,
            "optimizer": step - forward - backward,
        }

    def summary(self) -> str:
        """The table of `seconds`."""
        found = self.seconds()
        total = sum(found.values())
        rows = [f"| {name} | {1000 * each:,.1f} | {each / total:.1%} |" for name, each in found.items()]
        return "\n".join(["", "| part of a training batch | ms | share |", "|---|---|---|", *rows])


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
