"""What SIGINT (Ctrl-C) and SIGTERM do to a command."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit statuses, as a shell has them


def end_once() -> None:
    """Let the first SIGINT end the command in order, ignore the second, and let a third end it at once.

    Python's own handler raises KeyboardInterrupt each time: while the run cleans up after the first one, and at exit,
    the next one would break that off with a traceback. Where SIGINT is ignored, as by nohup, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    received = 0

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received == 1:
            raise KeyboardInterrupt
        if received > 2:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, handle)


def exit_on_sigterm() -> None:
    """Let SIGTERM end the command in order, so that it removes the folder of a run that has not begun.

    Once batches are read, `EndOnSigterm` waits for the end of one.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
