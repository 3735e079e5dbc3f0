"""Where the time of a training step goes, from Lightning's profiler."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.profilers import SimpleProfiler

from zoo.tasks import VideoQATask


class StepTimes(SimpleProfiler):
    """Time the parts of a step: `--trainer.profiler callbacks.StepTimes` prints a table at the end of `fit`.

    On a GPU each part waits for its kernels, so that steps are slower than without the profiler.

    Args:
        dirpath: Folder of a file that gets the table.
        filename: Its name; None prints the table.
    """

    def __init__(self, dirpath: str | Path | None = None, filename: str | None = None) -> None:
        super().__init__(dirpath, filename)
        self._lightning_module: Any = None  # the Trainer sets it
        self._parts: list[str] = []  # names of the timed modules

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """Time the modules of the model by forward hooks."""
        super().setup(stage, local_rank, log_dir)
        task: Any = self._lightning_module
        if stage == "fit" and isinstance(task, VideoQATask):
            backbone, geometry = task.model.backbone, task.model.geometry
            for name, part in (
                ("vision", backbone.vlm.model.visual),
                ("geometry", geometry),
                ("decoder", backbone.decoder),
            ):
                if part is not None:
                    self._parts.append(name)
                    part.register_forward_pre_hook(partial(self._in_training, self.start, name))
                    part.register_forward_hook(partial(self._in_training, self.stop, name), always_call=True)

    def _in_training(self, act: Callable[[str], None], name: str, *_: Any) -> None:
        if self._lightning_module.training:  # else in a validation
            act(name)

    def start(self, action_name: str) -> None:
        """Wait for the GPU, then start the clock."""
        _wait()
        super().start(action_name)

    def stop(self, action_name: str) -> None:
        """Wait for the GPU, then stop the clock."""
        _wait()
        super().stop(action_name)

    def seconds(self) -> dict[str, float]:
        """Return the mean seconds of each part of a batch, in order; the optimizer's include clipping and callbacks."""
        batches = len(self.recorded_durations["run_training_batch"])

        def mean(ending: str) -> float:
            return sum(sum(each) for name, each in self.recorded_durations.items() if name.endswith(ending)) / batches

        if not batches:
            return {}
        step, forward, backward = (mean(name) for name in ("run_training_batch", ".training_step", ".backward"))
        forward_parts = {name: mean(name) for name in self._parts}
        return {
            "data": mean("train_dataloader_next"),
            **forward_parts,
            "other forward": forward - sum(forward_parts.values()),
            "backward": backward,
            "optimizer": step - forward - backward,
        }

    def summary(self) -> str:
        """Return the table of `seconds`."""
        seconds = self.seconds()
        total = sum(seconds.values())
        rows = [f"| {name} | {1000 * each:,.1f} | {each / total:.1%} |" for name, each in seconds.items()]
        return "\n".join(["", "| part of a training batch | ms | share |", "|---|---|---|", *rows])


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
