"""What answers at once: help, version and the commands without a model load no PyTorch."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from commands import main

ROOT = Path(main.__file__).parents[1]
HEAVY = ("torch", "lightning", "transformers")
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


def printed_by(*words: str, cwd: Path = ROOT) -> str:
    command = [sys.executable, "-c", SCRIPT.format(words=words, heavy=HEAVY, root=str(ROOT))]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], main.COMMANDS),
        (["--version"], [f"torch {version('torch')}", f"transformers {version('transformers')}", "spatial-vlm-zoo 0."]),
        (["score", "--help"], ["--scorer"]),
        (["report", "--help"], ["--format"]),
        (["study", "--help"], ["--executor"]),
    ],
)
def test_help_and_version_load_no_pytorch(words: list[str], expected: list[str]) -> None:
    printed = printed_by(*words)
    assert all(text in printed for text in expected)
    assert printed.endswith("loaded:\n"), printed


def test_every_command_has_one_line_in_the_help() -> None:
    lines = (main.__doc__ or "").splitlines()
    assert all(sum(line.startswith(f"    {command} ") for line in lines) == 1 for command in main.COMMANDS)


def test_the_packages_themselves_load_no_pytorch() -> None:
    script = "import sys, zoo.errors, datamodules, callbacks; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
