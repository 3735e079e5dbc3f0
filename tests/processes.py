"""Processes beside that of the tests."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import torch


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def run_in_process(target: Callable[..., object], *args: Any, limit_s: float) -> None:
    """Run a function in a fork, where nothing is imported again, which takes longer than many tests.

    Beside CUDA the process is a new one: after a backward pass, torch refuses another one in a fork.
    """
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    process: Any = context.Process(target=target, args=args)
    process.start()
    process.join(limit_s)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0, f"exit code {process.exitcode}"
