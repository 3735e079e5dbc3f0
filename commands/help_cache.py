"""A command's help, kept between calls: to build it imports Lightning, which alone takes five seconds of CPU."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib.metadata import version
from io import StringIO
from pathlib import Path

from zoo.errors import InputError
from zoo.files.atomic_io import write_whole
from zoo.files.fingerprint import fingerprint

FOLDER = Path("cache/help")
ROOT = Path(__file__).parents[1]
SOURCES = ("zoo/**/*.py", "datamodules/**/*.py", "callbacks/**/*.py", "commands/**/*.py", "configs/*.yaml")


def print_help(command: str, show: Callable[[str], object]) -> None:
    """Print the help of a command, as long as no source file, package or terminal width differs from the last call's.

    Args:
        command: Its name.
        show: Prints the help and exits.
    """
    state = [command, sys.version, shutil.get_terminal_size().columns]
    state += [version(package) for package in ("lightning", "jsonargparse", "torch", "transformers")]
    for pattern in SOURCES:
        files = {str(file.relative_to(ROOT)): file.stat() for file in sorted(ROOT.glob(pattern))}
        state.append([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files.items()])
    file = FOLDER / f"{fingerprint(state)}.txt"
    if not file.is_file():
        text = StringIO()
        with suppress(SystemExit), redirect_stdout(text):
            show(command)
        with suppress(InputError):  # a folder that can't be written is no reason for no help
            write_whole(file, text.getvalue())
        print(text.getvalue(), end="")
    else:
        print(file.read_text(encoding="utf-8"), end="")
