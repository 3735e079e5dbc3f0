"""Files that survive a crash: written whole or not at all, JSON lines that are durable once appended, and locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from zoo.errors import InputError

MAX_DIGITS = 300  # a float holds 308: a longer integer would overflow wherever it is computed with
PARTIAL = ".partial"  # the suffix of what is being written
TAKEN = {errno.EACCES, errno.EAGAIN}  # a lock that another process has, as POSIX allows both


# ---- JSON -----------------------------------------------------------------------------------------------------------


def parse_json(text: str | bytes) -> Any:
    """Parse the JSON of a user's file; bytes are UTF-8.

    Raises:
        ValueError: Not JSON, not UTF-8, nested too deeply, or an integer of more than 300 digits.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")  # as json.loads
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_parse_integer)  # json.loads would build one for each line of a file


def read_json(path: Path, remedy: str = "write or download it again") -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        remedy: What the user can do, for the error.

    Raises:
        ValueError: The file is absent or damaged.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror}): {remedy}") from error
    except ValueError as error:  # neither JSON nor UTF-8
        raise ValueError(f"{path}: not valid JSON ({error}): {remedy}") from error


# ---- Locks, which the system releases when the process ends ---------------------------------------------------------


def try_lock(path: Path) -> BinaryIO | None:
    """Lock a file, which is made with its folder if it is absent.

    Forked processes do not share the lock: data workers that outlive their run for seconds hold nothing. On a file
    system without locks each process gets it.

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


# ---- JSON lines, durable once appended ------------------------------------------------------------------------------


class JSONLines:
    """A file of JSON lines that several processes may append to at once.

    Each append locks the file. An incomplete last line, as a crash leaves it, is cut off first; without the lock that
    would cut off what another process has just written.

    Args:
        path: The file, which may exist.

    Raises:
        InputError: The file can't be written, here or in `append`; its content is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("a+b", buffering=0)  # a buffer would retry a failed write, and in parts
        except OSError as error:
            raise write_error(path, error) from error

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append one line per record; they are on disk when this returns."""
        rest = json_lines(records).encode(errors="backslashreplace")
        try:
            with _locked(self._file):
                self._cut_incomplete_line()
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    def _cut_incomplete_line(self) -> None:
        if not self._file.seek(0, os.SEEK_END):
            return
        self._file.seek(-1, os.SEEK_END)
        if self._file.read() != b"\n":
            self._file.seek(0)
            self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def _locked(file: FileIO) -> Iterator[None]:
    """Lock a file against other processes, where its file system has locks; some of clusters have none."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Return one line of JSON per record."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the records that have an id, the first one of each id.

    Skips absent files, and lines that are not valid JSON, as a crash or a full disk leaves them.
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


# ---- Files and folders that are whole or absent ---------------------------------------------------------------------


def replace_file(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all, however many processes write it; make its folder.

    The new content is written beside the file and renamed: a rename is atomic within one file system only, so a
    temporary folder is of no use.

    Args:
        path: The file, which may exist.
        content: Its bytes, or a function that writes them to an open file.

    Raises:
        OSError: It can't be written; the former file is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file as `replace_file` does, with an error for the user; text is encoded as UTF-8.

    Raises:
        InputError: It can't be written.
    """
    try:
        replace_file(path, content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
    except OSError as error:
        raise write_error(path, error) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file atomically, see `write_whole`."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a new or empty folder whole or not at all: yield a folder beside it that is renamed at the end.

    Raises:
        InputError: The folder is not empty, or can't be written.
    """
    refuse_full(folder)
    partial = folder.resolve().with_name(f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in filter(Path.is_file, partial.rglob("*")):  # safetensors lets its writer alone read them
            file.chmod(partial.stat().st_mode & 0o666)
        refuse_full(folder)  # again: another process may have written it
        partial.replace(folder.resolve())
    except (OSError, SafetensorError, WriteError) as error:
        cause = error.__cause__ if isinstance(error, WriteError) else error
        raise InputError(f"{folder} can't be written ({cause})") from cause
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_full(folder: Path) -> None:
    """Raise an InputError for a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty: choose a new folder")


class WriteError(InputError):
    """A file can't be written; its cause is the system's error."""


def write_error(path: Path, error: OSError) -> InputError:
    """Return the error for a file that can't be written."""
    kept = "its former content is kept"
    return WriteError(f"{path} can't be written: {error.strerror}; {kept}: fix that and run the command again")
