"""A folder of files named by what they depend on, with a limit on its size."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.files.atomic_io import PARTIAL, replace_file
from zoo.files.fingerprint import fingerprint

Description = Mapping[str, Any]  # everything that an entry depends on; JSON

ENTRY = ".safetensors"
ABANDONED_S = 3600  # no entry takes an hour to write
SHARE = 64  # the folder's size is measured again after each 1/64 of the limit was written


class CacheFolder:
    """Entries shared by processes, runs and models; the least recently used entry makes room.

    The name of an entry is a digest of everything that it depends on, so that no stale entry is ever found. Files are
    written whole or not at all.

    Args:
        folder: Where the entries are kept; "~" is the user's home.
        max_size_gb: Limit on the size of all entries, in 1e9 bytes. Each further process may exceed it by 1/64, or by
            one entry.
        option: The option that the cache has on the command line, for errors.

    Raises:
        InputError: A limit that is not positive.
    """

    def __init__(self, folder: str, max_size_gb: float, option: str) -> None:
        if not max_size_gb > 0:
            raise InputError(f"{option}.max_size_gb {max_size_gb}: must be positive")
        self.path, self.max_size_gb, self.option = Path(folder).expanduser(), max_size_gb, option
        self._unseen = math.inf  # bytes written since the folder's size was measured

    def file(self, entry: Description) -> Path:
        """The file of an entry, which may not exist."""
        return self.path / f"{fingerprint(entry)}{ENTRY}"

    def mark_used(self, entry: Description) -> None:
        """Mark an entry as used now."""
        with suppress(OSError):  # just evicted, or in a folder of another user
            os.utime(self.file(entry))

    def write(self, entry: Description, content: bytes) -> None:
        """Write an entry, after making room for it.

        Raises:
            InputError: The entry alone exceeds the limit.
            OSError: It can't be written; the former file is kept.
        """
        self._make_room(len(content))
        replace_file(self.file(entry), content)

    def _make_room(self, size: int) -> None:
        limit = int(self.max_size_gb * 1e9)
        if size > limit:
            raise InputError(
                f"one scene takes {size / 1e9:.3g} GB: raise {self.option}.max_size_gb {self.max_size_gb:g}"
            )
        self._unseen += size
        if self._unseen <= limit // SHARE:
            return
        self._unseen = size
        entries = []
        for path in self.path.glob("*"):
            with suppress(OSError):  # another process has evicted it
                status = path.stat()
                if path.suffix == ENTRY:
                    entries.append((status.st_mtime_ns, status.st_size, path))
                elif path.suffix == PARTIAL and status.st_mtime < time.time() - ABANDONED_S:
                    path.unlink()  # of a process that was killed
        full = sum(size for _, size, _ in entries)
        for _, freed, path in sorted(entries):
            if full <= limit - max(size, limit // SHARE):
                break
            with suppress(OSError):
                path.unlink()
            full -= freed
