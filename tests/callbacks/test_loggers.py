"""Loggers that an interrupt leaves whole."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from callbacks.loggers import TensorBoardFiles


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
