"""Shape and type checks of every signature while the tests run; small rooms; where the real data lies."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import signatures

gc.disable()  # all that is imported stays, and to look through it again and again takes a fourth of the time
signatures.check_signatures()
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start

from commands.main import keep_freed_memory  # noqa: E402 - after the hook, which checks what is imported later
from tests.cli import run, trained, trained_runs  # noqa: E402, F401 - fixtures

keep_freed_memory()


def skip_on_meta(init: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Leave out an initialization on the meta device, where torch takes longer to draw no numbers than elsewhere."""

    @wraps(init)
    def filled(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor if tensor.is_meta else init(tensor, *args, **kwargs)

    return filled


for draw in ("uniform_", "normal_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"):
    setattr(torch.nn.init, draw, skip_on_meta(getattr(torch.nn.init, draw)))

if sys.platform == "linux":  # a forked process ends with the tests: one that hangs would hold the pipe to their worker
    PR_SET_PDEATHSIG, libc = 1, ctypes.CDLL(None)
    os.register_at_fork(after_in_child=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))

ROOMS = (6, 2, 3)  # scenes of each split


def pytest_collection_finish() -> None:
    """Look for garbage from here on, and not among what was imported."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup() -> None:
    """One thread, whatever another test has left: a second one on a busy core makes a tiny model 25 times slower."""
    signatures.counts.clear()
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_seed_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command leaves its seed in the environment; no test inherits it from another."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # remembered, and restored after the test
    monkeypatch.delenv("PL_GLOBAL_SEED")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, as in a fresh process; an earlier test may have used up the first one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of third-party scenes; tests that need it are skipped where ZOO_REALDATA doesn't name it."""
    folder = os.environ.get("ZOO_REALDATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ZOO_REALDATA names no folder with the real scenes")
    return Path(folder)


@pytest.fixture(scope="session")
def rooms_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with 6 training, 2 validation and 3 test rooms."""
    from datamodules import Rooms

    root = tmp_path_factory.mktemp("rooms")
    Rooms(scenes=ROOMS, root=str(root), workers=1).prepare()
    return root
