"""SIGINT, as by Ctrl-C: the first ends a command in order, whatever comes next."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import main

INTERRUPTED = """
import atexit, signal, sys
from commands import main

def interrupt(times):
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)

atexit.register(interrupt, {at_exit})
main.run = lambda command: interrupt(1)
sys.argv = ["main.py", "fit"]
main.main()
"""


@pytest.mark.parametrize(("at_exit", "status"), [(0, 130), (1, 130), (2, -signal.SIGINT)])
def test_a_second_interrupt_is_ignored_and_a_third_ends_the_process(at_exit: int, status: int) -> None:
    words = [sys.executable, "-c", INTERRUPTED.format(at_exit=at_exit)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=Path(main.__file__).parent)
    assert (done.returncode, done.stderr) == (status, "interrupted\n")


def test_an_ignored_interrupt_stays_ignored() -> None:
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" + INTERRUPTED.format(at_exit=3)
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=Path(main.__file__).parent)
    assert (done.returncode, done.stderr) == (0, "")


WITH_WORKERS = """
import os, signal, time
from commands.interrupts import exit_on_sigterm
from datamodules.sources.base import map_in_processes

def work(number):
    if number == 5:
        os.kill(parent, signal.SIGTERM)
    time.sleep(0.1)

parent = os.getpid()
exit_on_sigterm()
list(map_in_processes(work, [(number,) for number in range(40)], 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_sigterm_ends_a_command_with_workers() -> None:
    words = [sys.executable, "-c", WITH_WORKERS]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=Path(main.__file__).parent)
    assert done.returncode == 128 + signal.SIGTERM
