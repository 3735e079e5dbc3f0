"""Threads sleep while they wait and freed memory is kept, unless variables of the environment say otherwise."""

import os
import subprocess
import sys

import pytest

from commands.main import share_cores

GROW_AND_FREE = """
import ctypes, re
from pathlib import Path
from commands.main import keep_freed_memory
{call}
glibc = ctypes.CDLL("libc.so.6")
glibc.malloc.restype, glibc.malloc.argtypes, glibc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 16 * 2**20
blocks = [glibc.malloc(size) for _ in range(16)]
for block in blocks:
    ctypes.memset(block, 1, size)
for block in blocks:
    glibc.free(block)
print(int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
@pytest.mark.parametrize(
    "call, variables, is_kept",
    [
        ("keep_freed_memory()", {}, True),
        ("", {}, False),
        ("keep_freed_memory()", {"MALLOC_TRIM_THRESHOLD_": "1000000"}, False),
        ("keep_freed_memory()", {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000"}, False),
    ],
)
def test_freed_memory_is_kept(call: str, variables: dict[str, str], is_kept: bool) -> None:
    code = GROW_AND_FREE.format(call=call)
    found = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert (int(found.stdout) > 200) == is_kept  # MiB, of 256


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait(given: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == found
