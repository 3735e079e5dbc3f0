"""The options of this suite: `--minutes`, `--shuffle`, and the time limit of a test that hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MANY = """
import pytest

@pytest.mark.parametrize("number", range(6))
def test_number(number):
    pass
"""
HANGS = """
import ctypes, multiprocessing, time

def test_waits_in_c():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex), libc.pthread_mutex_lock(mutex)

def test_waits_for_a_forked_process_that_hangs():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    process.start()
    process.join()

def test_catches_everything():
    try:
        time.sleep(1000)
    except BaseException:
        time.sleep(1000)

def test_passes():
    pass
"""


def pytest_on(files: dict[str, str], folder: Path, *options: str) -> str:
    """Run pytest with the settings and the conftest.py of this project on other tests; return what it prints."""
    for name, source in files.items():
        (folder / name).write_text(source)
    shared = ["-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *shared, *options, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one process", "two"])
def test_tests_after_the_given_minutes_are_skipped_and_counted(processes: list[str], tmp_path: Path) -> None:
    printed = pytest_on({"test_many.py": MANY}, tmp_path, *processes, "--minutes", "0", "--shuffle", "a commit")
    assert "6 skipped" in printed
    assert printed.splitlines()[-1] == "6 tests were not reached in the given minutes (0)"
    printed = pytest_on({}, tmp_path, *processes, "--minutes", "60", "--shuffle", "a commit")  # the control
    assert "6 passed" in printed
    assert printed.splitlines()[-1] == "0 tests were not reached in the given minutes (60)"


@pytest.mark.slow
def test_the_order_follows_from_the_seed_and_files_stay_together(tmp_path: Path) -> None:
    files = {f"test_{name}.py": MANY for name in "abc"}

    def order(*seed: str) -> list[str]:
        printed = pytest_on(files, tmp_path, "--collect-only", *seed)
        return [line.rpartition("/")[2] for line in printed.splitlines() if "::" in line]

    plain, one, again, other = order(), *(order("--shuffle", seed) for seed in ("one", "one", "other"))
    assert one == again and len({*map(tuple, (plain, one, other))}) == 3 and sorted(one) == plain
    for each in (one, other):
        assert len({*(name[:6] for name in each[:6])}) == len({*(name[:6] for name in each[6:12])}) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_test_that_hangs_ends_and_the_others_run(tmp_path: Path) -> None:
    """As `make tests` runs them; the file that a forked process would hold open is the output."""
    options = ["-o", "timeout=30", "-n", "2", "--dist", "worksteal"]
    found = pytest_on({"test_hangs.py": HANGS}, tmp_path, *options)
    assert "3 failed, 1 passed" in found and found.count("crashed while running") >= 3, found
