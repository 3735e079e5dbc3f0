"""A cache folder of tensors: one atomically written file per key, with a limit on the total size."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from zoo.errors import InputError
from zoo.files.atomic_io import replace_file
from zoo.files.fingerprint import DIGITS, fingerprint
from zoo.files.ownership import begins_with, remove_own, remove_partials

Key = Mapping[str, Any]  # everything that an entry depends on, as JSON-like values
Tensors = Mapping[str, Tensor]

CACHE, ROOT = Path("cache"), "ZOO_CACHE"  # the folder of all caches, and the variable that names another one
ENTRY = ".safetensors"
NAME = re.compile(rf"[0-9a-f]{{{DIGITS}}}{re.escape(ENTRY)}")
HEADER = b'{"__metadata__":{"entry":', 8  # the start of an entry, and the number of bytes before it
ABANDONED_S = 3600  # an entry takes less than an hour to write
SHARE = 64  # the folder's size is measured again after writing 1/64 of the limit


def cache_folder(folder: str) -> Path:
    """Return the folder of a cache. One inside `cache/` is inside the folder that ZOO_CACHE names, if that is set.

    The settings of runs keep the name inside `cache/`, so they do not depend on the variable.

    Example:
        >>> cache_folder("data/mine")
        PosixPath('data/mine')
    """
    path, root = Path(folder).expanduser(), os.environ.get(ROOT)
    return Path(root).expanduser() / path.relative_to(CACHE) if root and path.is_relative_to(CACHE) else path


@dataclass
class Cache:
    """A folder of entries, shared by processes, runs and models. The least recently used entries are evicted.

    A file's name is a digest of its key, and the key holds everything that the tensors depend on, so stale entries are
    never found. A damaged file counts as absent. Files of others neither count nor are removed. Two processes that lack
    the same entry both compute it, and one file replaces the other, equal one.

    Args:
        folder: Folder of the entries. "~" is the user's home.
        max_size_gb: Limit of the total size in 1e9 bytes. Each further process may exceed it by 1/64 or by one entry.

    Attributes:
        option: The cache's option on the command line, for error messages.
        has_checksums: Whether an entry is read completely to verify its checksum. Without checksums only truncated
            files are noticed, and tensors stay memory-mapped and are read when they are used.
        path: The folder.
        num_computed: Number of absent or damaged entries that this object has computed and written.
        write_error: The last error in writing an entry.

    Raises:
        InputError: The limit is not positive.
    """

    folder: str
    max_size_gb: float
    option: ClassVar[str]
    has_checksums: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.max_size_gb > 0:
            raise InputError(f"{self.option}.max_size_gb {self.max_size_gb}: must be positive")
        self.path = cache_folder(self.folder)
        self.num_computed = 0
        self.write_error: OSError | None = None
        self._first: Path | None = None  # first entry that this object has read or written
        self._unmeasured = math.inf  # bytes written since the folder's size was measured

    def file(self, key: Key) -> Path:
        """Return the file of an entry. It may not exist."""
        return self.path / f"{fingerprint(key)}{ENTRY}"

    def get(self, key: Key, compute: Callable[[], Tensors]) -> Tensors:
        """Read an entry, or compute and write it.

        Raises:
            InputError: The entry alone exceeds the limit.
        """
        found = self.read(key)
        if found is None:
            found = compute()
            self.write(key, found)
        return found

    def read(self, key: Key) -> Tensors | None:
        """Read an entry and mark it as used now. None if there is no intact one."""
        path = self.file(key)
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
                if file.metadata() != self._metadata(key, found):
                    return None
        except (OSError, SafetensorError, RuntimeError):  # absent, truncated, or evicted before torch opened it
            return None
        with suppress(OSError):  # just evicted, or in another user's folder
            os.utime(path)
        self._first = self._first or path
        return found

    def write(self, key: Key, tensors: Tensors) -> None:
        """Write an entry after making room for it. Warn if it can't be written, because it can be computed again.

        Raises:
            InputError: The entry alone exceeds the limit.
        """
        path, content = self.file(key), save(dict(tensors), self._metadata(key, tensors))
        self.num_computed += 1
        self._make_room(len(content))
        try:
            replace_file(path, content)
            self._first = self._first or path
        except OSError as error:
            self.write_error = error
            warnings.warn(
                f"{self.folder}: an entry can't be kept ({error.strerror}), so it will be computed again", stacklevel=3
            )

    @property
    def has_lost_entries(self) -> bool:
        """Whether the folder is too small: the first entry that this object has read or written no longer exists."""
        return self._first is not None and not self._first.exists()

    def _metadata(self, key: Key, tensors: Tensors) -> dict[str, str]:
        """Return the header of a file: a description of its content for users, and a checksum."""
        checksum = {"checksum": fingerprint(dict(tensors))} if self.has_checksums else {}
        # one field, because safetensors shuffles several
        return {"entry": json.dumps({**key, **checksum}, sort_keys=True)}

    def _make_room(self, size: int) -> None:
        limit = int(self.max_size_gb * 1e9)
        if size > limit:
            raise InputError(
                f"one scene takes {size / 1e9:.3g} GB: raise {self.option}.max_size_gb {self.max_size_gb:g}"
            )
        self._unmeasured += size
        if self._unmeasured <= limit // SHARE:
            return
        self._unmeasured = size
        remove_partials(self.path, ABANDONED_S)
        allowed, entries = limit - max(size, limit // SHARE), self._entries()
        if sum(size for _, size, _ in entries) <= allowed:
            return
        entries = [entry for entry in entries if begins_with(entry[-1], *HEADER)]  # reads each file's first bytes
        full = sum(size for _, size, _ in entries)
        for _, freed, path in sorted(entries):
            if full <= allowed:
                break
            with suppress(OSError):
                remove_own(path, *HEADER)
            full -= freed

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return time of use, size and path of the files that are named as entries."""
        entries = []
        for path in self.path.glob(f"*{ENTRY}"):
            with suppress(OSError):  # another process may have evicted it
                if NAME.fullmatch(path.name):
                    status = path.stat()
                    entries.append((status.st_mtime_ns, status.st_size, path))
        return entries
