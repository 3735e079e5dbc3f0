"""The selected frames of the first validation scenes, in TensorBoard."""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.visualization import camera_map, contact_sheet


class GalleryCallback(Callback):
    """Logs one contact sheet per scene, and a map of the camera path if the scene has poses; once per run.

    Args:
        scenes: number of validation scenes; 0 for none.
    """

    def __init__(self, scenes: int = 4) -> None:
        self.scenes = scenes
        self._shown = False

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the images before the first validation."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if self._shown or trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        self._shown = True
        data: Any = trainer.val_dataloaders
        for index in range(min(self.scenes, len(data.dataset))):
            for name, image in scene_images(data.dataset, index).items():
                for logger in loggers:
                    logger.experiment.add_image(name, image, trainer.global_step, dataformats="HWC")


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
