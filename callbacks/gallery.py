"""The selected frames of the first validation scenes, and the cameras that a model predicts, in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.visualization import camera_map, contact_sheet, pose_map
from zoo.errors import SCENE_FAULTS
from zoo.objectives import predicted_cameras
from zoo.tasks import VideoQATask


class GalleryCallback(Callback):
    """Logs one contact sheet per scene, and a map of the camera path if the scene has poses; once per run.

    Of a model with the objective `CameraPrediction` each validation logs a map of the predicted and true cameras.

    Args:
        scenes: number of validation scenes; 0 for none.
    """

    def __init__(self, scenes: int = 4) -> None:
        self.scenes = scenes
        self._shown = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the images before the first validation."""
        if self._shown or not tensorboards(trainer):
            return
        self._shown = True
        data: Any = trainer.val_dataloaders
        for index in range(min(self.scenes, len(data.dataset))):
            log_images(trainer, scene_images(data.dataset, index))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Log the cameras that the model predicts for the first scenes."""
        if batch_idx < self.scenes and tensorboards(trainer) and isinstance(pl_module, VideoQATask):
            with trainer.precision_plugin.forward_context(), suppress(*SCENE_FAULTS):  # an image stops no run
                found = predicted_cameras(pl_module.model, batch)
                log_images(trainer, {f"cameras/{name}": np.asarray(pose_map(*poses)) for name, poses in found.items()})


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the loggers that take images, on the main process and outside of the sanity check."""
    if trainer.sanity_checking or not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def log_images(trainer: Trainer, images: Mapping[str, np.ndarray]) -> None:
    """Log images by their tags."""
    for logger in tensorboards(trainer):
        for tag, image in images.items():
            logger.experiment.add_image(tag, image, trainer.global_step, dataformats="HWC")


def scene_images(dataset: Any, index: int) -> dict[str, np.ndarray]:
    """Return the images of a scene of a `SceneDataset` by TensorBoard tag; none if the scene can't be read."""
    loaded = dataset[index]
    if loaded.error is not None:
        return {}
    name, frames = loaded.scene.name, loaded.frame_indices
    drawn = {f"frames/{name}": np.asarray(contact_sheet(loaded.frames, frames))}
    view = dataset.open(index).view()
    if view.world_to_camera is not None:
        drawn[f"path/{name}"] = np.asarray(camera_map(view, frames, type(dataset.sampler).__name__))
    return drawn
