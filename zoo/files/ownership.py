"""Remove, replace and rename files: only what this program has made, and can prove to have made.

The proofs are a name that `partial_name` gives, the first bytes of a file, a marker file beside it, and what this
process remembers. A suffix or the folder around a file proves nothing. No link is followed. No other package of the
library removes or renames anything (tests/test_structure.py).
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from zoo.errors import InputError
from zoo.files.fingerprint import DIGITS, fingerprint

PARTIAL = ".partial"  # suffix of files and folders that are being written
PARTIAL_NAME = re.compile(rf"\.[0-9a-f]{{{DIGITS}}}{re.escape(PARTIAL)}")
_made: set[Path] = set()  # folders that this process has made


def file_name(text: str) -> str:
    """Return a text as a part of a path: letters, digits, dots and dashes, which leave no folder. It may be empty.

    Example:
        >>> file_name("../Model-Org/Y"), file_name("num_frames 8"), file_name("..")
        ('Model-Org-Y', 'num_frames-8', '')
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


# ---- Files and folders that are being written ------------------------------------------------------------------------


def new_partial(path: Path) -> Path:
    """Return a new path beside a file or folder, under which it is written before it is renamed."""
    return path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")


def partial_of(path: Path) -> Path:
    """Return the same such path at each call, for work under a lock that goes on, or begins again, after a kill."""
    return path.with_name(f".{fingerprint(path.name)}{PARTIAL}")


def remove_partial(path: Path) -> None:
    """Remove a file or folder that was being written. Nothing happens if it is absent, or has another name."""
    if PARTIAL_NAME.fullmatch(path.name):
        _remove(path)


def remove_partials(folder: Path, min_age_s: int = 0) -> None:
    """Remove the files that killed processes were writing in a folder.

    Args:
        folder: The folder. It may be absent.
        min_age_s: Age in seconds below which another process may still be writing a file.
    """
    for path in folder.glob(f".*{PARTIAL}"):
        with suppress(OSError):  # another process may have removed it
            status = path.lstat()
            if not path.is_dir() and status.st_mtime <= time.time() - min_age_s:
                remove_partial(path)


def move_new(source: Path, target: Path) -> None:
    """Rename a file or folder of this program to a path at which there is nothing, or an empty folder.

    Raises:
        InputError: Something is there.
    """
    if not is_free(target):
        refuse_existing([target])
    source.rename(target)


def refuse_existing(paths: Iterable[Path]) -> None:
    """Raise InputError if something is at one of these paths."""
    if found := next(filter(os.path.lexists, paths), None):
        raise InputError(f"{found} exists: move it away, or name another place")


def is_free(path: Path) -> bool:
    """Return whether nothing is at a path, or only an empty folder. A link to nowhere is something."""
    return not os.path.lexists(path) or (path.is_dir() and not path.is_symlink() and not any(path.iterdir()))


# ---- Files that begin as this program writes them --------------------------------------------------------------------


def begins_with(path: Path, beginning: bytes, offset: int = 0) -> bool:
    """Return whether a file has these bytes after `offset` others. A link, folder or unreadable file has not."""
    try:
        with open(path, "rb", opener=refuse_links) as file:
            return file.read(offset + len(beginning))[offset:] == beginning
    except OSError:
        return False


def refuse_links(path: str, flags: int) -> int:
    """Open a file as `os.open` does, for `open(opener=...)`. A link raises OSError, wherever it leads."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def refuse_other(path: Path, beginning: bytes, offset: int = 0, option: str = "") -> None:
    """Raise InputError for a file that exists and does not begin as the former output of a command does.

    Args:
        path: The file that the command replaces.
        beginning: What its output has after `offset` bytes.
        offset: The number of these bytes.
        option: The command's option that names the file, for the message.
    """
    if os.path.lexists(path) and not begins_with(path, beginning, offset):
        name = " ".join(filter(None, (option, str(path))))
        raise InputError(f"{name} is there already, and not what this command writes: name another file, or move it")


def remove_own(path: Path, beginning: bytes, offset: int = 0) -> None:
    """Remove a file that begins as this program writes it. Any other is kept, and an absent one is ignored."""
    if begins_with(path, beginning, offset):
        path.unlink(missing_ok=True)


# ---- Files beside a marker, and folders of this process --------------------------------------------------------------


def remove_marked(marker: Path, paths: Sequence[Path]) -> None:
    """Remove files and folders, and then the marker that this program wrote before it made them.

    Raises:
        InputError: There is no marker, so one of them is somebody else's.
    """
    if not marker.is_file():
        refuse_existing(paths)
    for path in paths:
        _remove(path)
    marker.unlink(missing_ok=True)


def make_if_absent(folder: Path) -> bool:
    """Make a folder, and remember it for `remove_made`. Return False if something is at its path.

    Raises:
        InputError: It can't be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise InputError(f"{folder} can't be made: {error.strerror}") from error
    _made.add(folder.absolute())
    return True


def leave_to_others(folder: Path) -> None:
    """Forget a folder that this process has made, because another process uses it."""
    _made.discard(folder.absolute())


def remove_made(folder: Path) -> None:
    """Remove a folder with its content if this process has made it."""
    if folder.absolute() in _made:
        _remove(folder)


def remove_empty(folder: Path) -> None:
    """Remove a folder that this process has made and left empty."""
    if folder.absolute() in _made:
        with suppress(OSError):
            folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
