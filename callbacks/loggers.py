"""Images, tables of answers, and settings in TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image


def picture_loggers(trainer: Trainer) -> list[TensorBoardLogger | WandbLogger]:
    """Return the loggers that take images and text: on the main process, outside of the sanity check."""
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
            _write_table(logger, tag, columns, rows, trainer.global_step)


def log_settings(trainer: Trainer, settings: Mapping[str, Any]) -> None:
    """Log the options of a run: the config of a W&B run, a table in TensorBoard."""
    for logger in picture_loggers(trainer):
        if isinstance(logger, WandbLogger):
            logger.log_hyperparams(dict(settings))
        else:
            rows = [[name, str(value)] for name, value in settings.items()]
            _write_table(logger, "settings", ["option", "value"], rows, trainer.global_step)


def _write_table(
    logger: TensorBoardLogger, tag: str, columns: Sequence[str], rows: Sequence[Sequence[str]], step: int
) -> None:
    cells = [[" ".join(text.replace("|", "\\|").split()) for text in row] for row in (columns, *rows)]
    head, *body = (f"| {' | '.join(row)} |" for row in cells)
    logger.experiment.add_text(tag, "\n".join([head, "|---" * len(columns) + "|", *body]), step)
