"""Images, tables of answers, and settings in TensorBoard and Weights & Biases."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from zoo.errors import causes
from zoo.files.atomic_io import write_error


class TensorBoardFiles(TensorBoardLogger):
    """TensorBoard's files of a run, directly in its folder.

    Values are written by a thread. KeyboardInterrupt amid its queue may leave that locked, and the end of the run would
    wait for it forever: SIGINT waits until the values are written.

    Raises:
        InputError: The files can't be written, as on a full disk; from any method.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        """The writer, whose first use makes the files."""
        with self._writing():
            return super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand values to the thread."""
        with interrupts_held_back(), self._writing():
            super().log_metrics(metrics, step)

    def save(self) -> None:
        """Wait until all values are written."""
        with interrupts_held_back(), self._writing():
            super().save()

    def finalize(self, status: str) -> None:
        """Write what is left, and close the files."""
        with self._writing():
            super().finalize(status)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Lightning wraps some
            cause = next((each for each in causes(error) if isinstance(each, OSError)), None)
            if cause is None:
                raise
            raise write_error(Path(self.log_dir), cause) from error


@contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Let SIGINT wait until the block ends."""
    handler, is_main = signal.getsignal(signal.SIGINT), threading.current_thread() is threading.main_thread()
    if not callable(handler) or not is_main:  # it is ignored, or goes to the main thread
        yield
        return
    received: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


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
