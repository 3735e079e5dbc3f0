"""Logs frames, camera paths, predicted cameras and answers to TensorBoard or W&B."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from PIL import Image

from callbacks.camera_map import camera_map, pose_map
from callbacks.contact_sheet import contact_sheet
from callbacks.loggers import log_images, log_table, picture_loggers
from zoo.errors import SCENE_FAULTS
from zoo.tasks import VideoQATask
from zoo.tasks.video_qa import predicted_cameras

ANSWER = ("scene", "question", "prediction", "ground_truth")


class GalleryCallback(Callback):
    """Log one contact sheet per scene, and a map of the camera path if the scene has poses; once per run.

    Each validation logs the answers about the first scenes, and of a model with the objective `CameraPrediction` a map
    of the predicted and true cameras. A training that samples answers logs those of one question whenever it logs its
    loss.

    Args:
        scenes: Number of validation scenes; 0 for none.
    """

    def __init__(self, scenes: int = 4) -> None:
        self.scenes = scenes
        self._shown = False
        self._answers: list[list[str]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log answers that the training has sampled."""
        if trainer._logger_connector.should_update_logs and isinstance(pl_module, VideoQATask):
            columns, rows = pl_module.algorithm.samples()
            if rows:
                log_table(trainer, "samples", columns, rows)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the images before the first validation."""
        self._answers = []
        if self._shown or not picture_loggers(trainer):
            return
        self._show(trainer, trainer.val_dataloaders)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the images of a training that ended before its first validation."""
        if not self._shown and trainer.limit_val_batches and picture_loggers(trainer):
            self._show(trainer, trainer.datamodule.val_dataloader())  # type: ignore[attr-defined]

    def _show(self, trainer: Trainer, data: Any) -> None:
        """Log the images of the first scenes."""
        self._shown = True
        for index in range(min(self.scenes, len(data.dataset))):
            log_images(trainer, scene_images(data.dataset, index))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Log the cameras that the model predicts for the first scenes, and keep its answers."""
        if batch_idx >= self.scenes or not picture_loggers(trainer) or not isinstance(pl_module, VideoQATask):
            return
        self._answers += [[str(record[key]) for key in ANSWER] for record in outputs]
        with trainer.precision_plugin.forward_context(), suppress(*SCENE_FAULTS):  # an image stops no run
            found = predicted_cameras(pl_module.model, batch)
            log_images(trainer, {f"cameras/{name}": pose_map(*poses) for name, poses in found.items()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the answers about the first scenes."""
        if self._answers:
            log_table(trainer, "answers", ANSWER, self._answers)


def scene_images(dataset: Any, index: int) -> dict[str, Image.Image]:
    """Return the images of one scene in a `SceneDataset` by tag; none if the scene can't be read."""
    loaded = dataset[index]
    if loaded.error is not None:
        return {}
    name, frames = loaded.name, loaded.frame_indices
    drawn = {f"frames/{name}": contact_sheet(loaded.frames, frames)}
    view = dataset.open(index)
    if view.world_to_camera is not None:
        drawn[f"path/{name}"] = camera_map(view, frames, type(dataset.sampler).__name__)
    return drawn
