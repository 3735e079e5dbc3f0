"""Loggers that an interrupt leaves whole."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from callbacks.loggers import TensorBoardFiles
from commands.faults import error_line
from commands.terminal import quiet_lightning


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("held_back", [False, True])  # the former is the control
def test_an_interrupt_waits_until_the_values_are_written(
    held_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = TensorBoardFiles(tmp_path) if held_back else TensorBoardLogger(tmp_path, name="", version="")
    flush, handler = EventFileWriter.flush, signal.getsignal(signal.SIGINT)
    written = []

    def interrupted(self: EventFileWriter) -> None:
        if not written:  # the end of the logger flushes as well
            signal.raise_signal(signal.SIGINT)
        flush(self)
        written.append(self)

    logger.log_metrics({"train/loss": 1.0}, step=1)
    with monkeypatch.context() as patch:
        patch.setattr(EventFileWriter, "flush", interrupted)
        with pytest.raises(KeyboardInterrupt):
            logger.save()
    assert bool(written) == held_back and signal.getsignal(signal.SIGINT) is handler


def log_until_full(kind: Callable[[], TensorBoardLogger], folder: Path) -> None:
    """In a process of its own, which can't write more than 1,000 bytes to a file."""
    os.chdir(folder)
    sys.stderr = (folder / "stderr").open("w")
    quiet_lightning()
    logger = kind()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a full disk: a real failed write
    try:
        for step in range(400):
            logger.log_metrics({"train/loss": 1.0}, step=step)
        logger.save()
    except Exception as error:
        sys.exit(error_line(error))


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (lambda: TensorBoardFiles(Path(".")), ". can't be written"),
        (lambda: TensorBoardLogger(".", "", ""), "a file"),
    ],
    ids=["ours", "stock"],
)
def test_on_a_full_disk_the_files_are_named_in_one_line(
    kind: Callable[[], TensorBoardLogger], place: str, tmp_path: Path
) -> None:
    started = multiprocessing.get_context("fork").Process(target=log_until_full, args=(kind, tmp_path))
    started.start()
    started.join(60)
    said = (tmp_path / "stderr").read_text()
    assert started.exitcode == 1 and said.count("\n") == 1
    assert said.startswith(f"{place}: File too large; ")
