"""Loggers that an interrupt leaves whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from callbacks.loggers import TensorBoardFiles

ROOT = str(Path(__file__).parents[2])


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


FULL = """
import resource, signal, sys
from pathlib import Path
from lightning.pytorch.loggers import TensorBoardLogger
from callbacks.loggers import TensorBoardFiles
from commands.faults import error_line
from commands.terminal import quiet_lightning

quiet_lightning()
logger = {"ours": lambda: TensorBoardFiles(Path(".")), "stock": lambda: TensorBoardLogger(".", "", "")}[sys.argv[1]]()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a full disk: a real failed write
try:
    for step in range(400):
        logger.log_metrics({"train/loss": 1.0}, step=step)
    logger.save()
except Exception as error:
    sys.exit(error_line(error))
"""


@pytest.mark.parametrize(("logger", "place"), [("ours", ". can't be written"), ("stock", "a file")])
def test_on_a_full_disk_the_files_are_named_in_one_line(logger: str, place: str, tmp_path: Path) -> None:
    words = (sys.executable, "-c", FULL, logger)
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{place}: File too large; ")
