"""Locks of files, which the system releases when the process ends."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import BinaryIO

from zoo.files.atomic_io import write_error

TAKEN = {errno.EACCES, errno.EAGAIN}  # by another process, as POSIX allows both


def try_lock(path: Path) -> BinaryIO | None:
    """Lock a file, which is made with its folder if it is absent.

    A lock is of one process, and not of those that it forks: data workers that outlive it for seconds hold nothing. On
    a file system without locks each process gets it.

    Returns:
        The file, locked until it is closed, or None if another process has the lock.

    Raises:
        InputError: The folder can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise write_error(path.parent, error) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            file.close()
            return None
    return file
