"""Log frames, camera paths, predicted cameras and answers to TensorBoard or W&B."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from evaluation.drawings import camera_map, columns_of_views, contact_sheet, pose_map
from evaluation.table import markdown_table
from zoo.errors import SCENE_FAULTS
from zoo.tasks.video_qa import VideoQATask, predicted_cameras, predicted_pictures

ANSWER = ("scene", "question", "prediction", "ground_truth")


class GalleryCallback(Callback):
    """Log one contact sheet per scene, and a map of the camera path if the scene has poses, once per run.

    Each validation logs the answers about the first scenes. With the objective `CameraPrediction` it also logs a map of
    the predicted and true cameras, and with one that predicts views those beside the target and the nearest shown view.
    Training that samples answers logs those to one question whenever it logs its loss.

    Args:
        scenes: Number of validation scenes. 0 logs none.
    """

    def __init__(self, scenes: int = 4) -> None:
        self.scenes = scenes
        self._shown = False
        self._answers: list[list[str]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log the answers that training has sampled."""
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
        """Log the images if training ended before its first validation."""
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
        """Log the cameras and views that the model predicts for the first scenes, and keep its answers."""
        if batch_idx >= self.scenes or not picture_loggers(trainer) or not isinstance(pl_module, VideoQATask):
            return
        self._answers += [[str(record[key]) for key in ANSWER] for record in outputs]
        with trainer.precision_plugin.forward_context(), suppress(*SCENE_FAULTS):  # an image must not stop a run
            found = predicted_cameras(pl_module.model, batch)
            log_images(trainer, {f"cameras/{name}": pose_map(*poses) for name, poses in found.items()})
            pictures = predicted_pictures(pl_module.model, batch)
            log_images(trainer, {name: columns_of_views(columns) for name, columns in pictures.items()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the answers about the first scenes."""
        if self._answers:
            log_table(trainer, "answers", ANSWER, self._answers)


def scene_images(dataset: Any, index: int) -> dict[str, Image.Image]:
    """Return the images of one scene in a `SceneDataset` by tag. Empty if the scene can't be read."""
    loaded = dataset[index]
    if loaded.error is not None:
        return {}
    name, frames = loaded.name, loaded.frame_indices
    drawn = {f"frames/{name}": contact_sheet(loaded.frames, frames)}
    view = dataset.open(index)
    if view.world_to_camera is not None:
        drawn[f"path/{name}"] = camera_map(view, frames, type(dataset.sampler).__name__)
    return drawn


def picture_loggers(trainer: Trainer) -> list[TensorBoardLogger | WandbLogger]:
    """Return the loggers that accept images and text, on the main process and outside of the sanity check."""
    if trainer.sanity_checking or not trainer.is_global_zero:
        return []
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger | WandbLogger)]


def log_images(trainer: Trainer, images: Mapping[str, Image.Image]) -> None:
    """Log images by their tags."""
    for logger in picture_loggers(trainer):
        for tag, image in images.items():
            if isinstance(logger, WandbLogger):
                logger.log_image(tag, [image])
            else:
                logger.experiment.add_image(tag, np.asarray(image), trainer.global_step, dataformats="HWC")


def log_table(trainer: Trainer, tag: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Log a table of texts."""
    for logger in picture_loggers(trainer):
        if isinstance(logger, WandbLogger):
            logger.log_text(tag, list(columns), [list(row) for row in rows])
        else:
            logger.experiment.add_text(tag, markdown_table([columns, *rows]), trainer.global_step)
