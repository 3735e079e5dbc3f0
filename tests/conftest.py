"""Shape and type checks of every signature while the tests run; small rooms; where the real data lies."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


if TYPE_CHECKING:
    from zoo.sequences.batch import Batch
    from zoo.tasks import VideoQATask


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
NOT_REACHED = "not reached in the given minutes"
DEADLINE = pytest.StashKey[float]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, help="skip and count the tests that have not begun after this time")
    parser.addoption("--shuffle", metavar="SEED", help="run the files, and the tests of each, in an order of this seed")


def pytest_configure(config: pytest.Config) -> None:
    """Set the end of `--minutes`, in seconds since 1970. A worker takes that of the process that started it."""
    minutes, given = config.option.minutes, getattr(config, "workerinput", {})
    config.stash[DEADLINE] = given.get("deadline", time.time() + 60 * (float("inf") if minutes is None else minutes))


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_configure_node(node: Any) -> None:
    node.workerinput["deadline"] = node.config.stash[DEADLINE]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Apply `--shuffle`. The tests of a file stay together, because they share fixtures."""
    if config.option.shuffle is not None:
        random.Random(config.option.shuffle).shuffle(items)
        files = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
        items.sort(key=lambda item: files[item.path])


def pytest_collection_finish() -> None:
    """Look for garbage from here on, and not among what was imported."""
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """One thread, whatever another test has left: a second one on a busy core makes a tiny model 25 times slower."""
    if time.time() > item.config.stash[DEADLINE]:
        pytest.skip(NOT_REACHED)
    signatures.counts.clear()
    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Print the number of tests that were not reached, below everything else."""
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.minutes is not None and reporter is not None:
        skipped = sum(NOT_REACHED in str(report.longrepr) for report in reporter.stats.get("skipped", ()))
        reporter.write_line(f"{skipped} tests were {NOT_REACHED} ({session.config.option.minutes:g})")


@pytest.fixture(autouse=True)
def nothing_of_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command leaves its seed and its folder in the environment; no test inherits them from another."""
    for name in ("PL_GLOBAL_SEED", "ZOO_RUN"):
        monkeypatch.setenv(name, "0")  # remembered, and restored after the test
        monkeypatch.delenv(name)


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


@pytest.fixture(name="tiny_model")
def a_tiny_model() -> VideoQATask:
    """Qwen2.5-VL with random weights; `tests.tiny.tiny_model` builds others by their parts."""
    from tests import tiny

    return tiny.tiny_model()


@pytest.fixture(name="tiny_batch")
def a_tiny_batch(tiny_model: VideoQATask) -> Batch:
    """Two scenes and four questions for `tiny_model`."""
    from tests import tiny

    return tiny.tiny_batch(tiny_model)
