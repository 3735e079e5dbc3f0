"""How commands start: help loads no PyTorch, waiting threads sleep, freed memory is kept, DDP copies no gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy

import commands.cli  # registers the strategies
from commands import main
from tests.callbacks.toy import record

assert commands.cli
ROOT = Path(main.__file__).parents[1]
HEAVY = ("torch", "lightning", "transformers", "pandas")
SCRIPT = """
import sys
sys.path.insert(0, {root!r})
sys.argv = ["main.py", *{words}]
try:
    from main import main
    main()
except SystemExit:
    pass
print("loaded:", *(name for name in {heavy} if name in sys.modules))
"""


def printed_by(script: str, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], main.COMMANDS),
        (["--version"], [f"torch {version('torch')}", "spatial-vlm-zoo 0."]),
        (["score", "--help"], ["--scorer"]),
        (["report", "--help"], ["--format"]),
        (["study", "--help"], ["--executor"]),
        (["fit", "--config", "prop.yaml"], []),  # there is no such config
    ],
)
def test_help_and_version_load_no_pytorch(words: list[str], expected: list[str]) -> None:
    printed = printed_by(SCRIPT.format(words=words, heavy=HEAVY, root=str(ROOT)))
    assert all(text in printed for text in expected)
    assert printed.endswith("loaded:\n"), printed


def test_the_packages_themselves_load_no_pytorch() -> None:
    printed_by("import sys, zoo.errors, datamodules, callbacks; assert 'torch' not in sys.modules")


SCORE = """
import sys
from io import BytesIO, TextIOWrapper
from commands.main import main
for encoding in ("ascii", "latin-1", "utf-8"):
    written = BytesIO()
    sys.argv, sys.stdout = ["main.py", "score", {file!r}], TextIOWrapper(written, encoding, "strict")
    main()
    sys.stdout.flush()
    sys.__stdout__.buffer.write(written.getvalue())
"""


@pytest.mark.slow
def test_a_name_that_stdout_cannot_encode_is_escaped(tmp_path: Path) -> None:
    row = record("a", "object_counting", "", "4", scene="toy/\u00e9\u5ba4\ud83d\x1b[31m", error="no video")
    (tmp_path / "answers.jsonl").write_text(json.dumps(row))
    command = [sys.executable, "-c", SCORE.format(file=str(tmp_path / "answers.jsonl"))]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert made.stdout.count(rb"\ud83d\x1b[31m (1 question): no video") == 3 and b"\x1b" not in made.stdout
    assert {rb"toy/\xe9\u5ba4", b"toy/\xe9\\u5ba4", "toy/\u00e9\u5ba4".encode()} == {
        name.split(rb"\ud83d")[0] for name in made.stdout.split() if name.startswith(b"toy/")
    }


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
        ("keep_freed_memory()", {"MALLOC_TRIM_THRESHOLD_": "1000000"}, False),  # the user's choice
    ],
)
def test_freed_memory_is_kept(call: str, variables: dict[str, str], is_kept: bool) -> None:
    found = printed_by(GROW_AND_FREE.format(call=call), variables)
    assert (int(found) > 200) == is_kept  # MiB, of 256


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait(given: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    main.share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == found


@pytest.mark.parametrize("strategy", ["ddp", "auto"])
def test_gradients_are_views_of_the_buckets(strategy: str) -> None:
    """Otherwise DDP keeps a copy of all of them: 12 GB of a model of 3 billion parameters."""
    built = Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False).strategy
    assert type(built) is DDPStrategy
    assert built._ddp_kwargs == {"gradient_as_bucket_view": True}
    assert DDPStrategy()._ddp_kwargs == {}  # the control: Lightning's own
