"""Files that survive a crash: lines that are on disk once they are written, and files that are whole or not there."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import InputError

PARTIAL = ".partial"


class JSONLines:
    """A file of JSON lines to add to. What a crash left of a last line is cut off first.

    Args:
        path: of a file that may exist.

    Raises:
        InputError: it can't be written, here or in `append`; what was in it is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("a+b", buffering=0)  # a buffer would try again to write what failed, and in parts
            self._file.seek(0)
            whole = self._file.read().rfind(b"\n") + 1
            self._file.truncate(whole)
        except OSError as error:
            raise unwritable(path, error) from error

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds a line each; they are on disk when this returns."""
        rest = lines(records).encode(errors="backslashreplace")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def lines(records: Iterable[Mapping[str, Any]]) -> str:
    """A line of JSON each."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def sound_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The records with an id in some files, each id once: the first is kept.

    A line that is no JSON, as a crash or a full disk leaves one, is passed over. So is a file that isn't there.
    """
    first: dict[str, dict[str, Any]] = {}
    for path in paths:
        # split at "\n" only: an answer may hold other line separators, which JSON does not escape
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # UnicodeDecodeError is one
                continue
            if isinstance(record, dict) and isinstance(record.get("id"), str):
                first.setdefault(record["id"], record)
    return list(first.values())


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, however many processes write it; makes its folder.

    Raises:
        OSError: It can't be written; the former file is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file as `replace_file` does, with an error for the user.

    Raises:
        InputError: It can't be written.
    """
    try:
        replace_file(path, content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """The error for the user when a file can't be written."""
    kept = "what was written before is kept"
    return InputError(f"{path} can't be written: {error.strerror}; {kept}: mend that and run the command again")
