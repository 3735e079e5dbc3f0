"""Files that survive a crash: written atomically, JSON lines that are durable once appended, and locks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

from zoo.errors import InputError
from zoo.files.ownership import is_free, move_new, new_partial, refuse_links, refuse_other, remove_partial

MAX_DIGITS = 300  # a float holds 308 digits, so a longer integer would overflow in computations
RECORD = b"{"  # the start of each of our JSON lines
TAKEN = {errno.EACCES, errno.EAGAIN}  # another process has the lock; POSIX allows both codes


# ---- JSON -----------------------------------------------------------------------------------------------------------


def parse_json(text: str | bytes) -> Any:
    """Parse the JSON of a user's file. Bytes are decoded as UTF-8.

    Raises:
        ValueError: The text is not JSON, not UTF-8, nested too deeply, or has an integer of more than 300 digits.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")  # as in json.loads
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


def try_lock(path: Path, is_inherited: bool = False) -> BinaryIO | None:
    """Lock a file. The file and its folder are created if absent.

    On a file system without locks every process gets the lock. filelock would raise an error there, or leave a marker
    after a crash. It also has no lock that child processes keep.

    Args:
        path: The file.
        is_inherited: Child processes that have the file open keep the lock after this process is killed, since they
            still write what it protects. By default they do not, so that data workers that outlive their run by seconds
            do not block the next one.

    Returns:
        The file, locked until it is closed, or None if another process has the lock.

    Raises:
        InputError: The folder can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab", opener=refuse_links)  # noqa: SIM115 - it is open as long as it is locked
    except OSError as error:
        raise write_error(path.parent, error) from error
    try:
        (fcntl.flock if is_inherited else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            file.close()
            return None
    return file


# ---- JSON lines, durable once appended ------------------------------------------------------------------------------


class JSONLines:
    """A file of JSON lines that several processes may append to at the same time.

    Each append locks the file. First it cuts off an incomplete last line, which a crash may leave. Without the lock,
    this could cut off what another process has just written.

    Args:
        path: The file. It may exist.

    Raises:
        InputError: The file can't be written, in the constructor or in `append`. Its content is kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # a buffer would retry a failed write in parts
            self._file = open(path, "a+b", buffering=0, opener=refuse_links)  # noqa: SIM115 - `close` closes it
        except OSError as error:
            raise write_error(path, error) from error

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append one line per record. They are on disk when this returns."""
        rest = json_lines(records).encode(errors="backslashreplace")
        try:
            with self.locked():
                self._cut_incomplete_line()
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the file against other processes until the next `append`, if its file system supports locks."""
        with suppress(OSError):  # some file systems of clusters do not
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _cut_incomplete_line(self) -> None:
        if not self._file.seek(0, os.SEEK_END):
            return
        self._file.seek(-1, os.SEEK_END)
        if self._file.read() != b"\n":
            self._file.seek(0)
            content = self._file.read()
            whole = content.rfind(b"\n") + 1
            if content.startswith(RECORD, whole):
                self._file.truncate(whole)
            else:
                self._file.write(b"\n")  # of a user's file

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Return one line of JSON per record."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the records that have an id, and keep the first one of each id.

    Absent files are skipped, and so are lines that are not valid JSON, which a crash or a full disk may leave.
    """
    first: dict[str, dict[str, Any]] = {}
    for path in paths:
        # split only at "\n", because an answer may contain other line separators, which JSON does not escape
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            try:
                record = json.loads(line)
            except ValueError:  # includes UnicodeDecodeError
                continue
            if isinstance(record, dict) and isinstance(record.get("id"), str):
                first.setdefault(record["id"], record)
    return list(first.values())


# ---- Atomic writes of files and folders -----------------------------------------------------------------------------


def replace_file(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file completely or not at all, even if several processes write it. Its folder is created.

    The new content is written beside the file and then renamed. A rename is atomic only within one file system, so a
    temporary folder elsewhere can't be used.

    Args:
        path: The file. It may exist.
        content: Bytes, or a function that writes them to an open file.

    Raises:
        OSError: The file can't be written. The former file is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = new_partial(path)
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
        remove_partial(partial)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file as `replace_file` does, with an error for the user. Text is encoded as UTF-8.

    Raises:
        InputError: The file can't be written.
    """
    try:
        replace_file(path, content if isinstance(content, bytes) else content.encode(errors="backslashreplace"))
    except OSError as error:
        raise write_error(path, error) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file atomically, see `write_whole`."""
    write_whole(path, json_text(content))


def json_text(content: Mapping[str, Any]) -> str:
    """Return the text of an indented JSON file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def start_of_json(content: Mapping[str, Any]) -> str:
    """Return the start of an indented JSON file whose first entries are these, for `write_output`."""
    return json_text(content).removesuffix("\n}\n")


def write_output(path: Path, content: str | bytes, beginning: str, option: str = "--output") -> None:
    """Write a file that a user has named as `write_whole` does. It may only replace a former output of the command.

    Args:
        path: The file.
        content: Its new content, which starts with `beginning`.
        beginning: The start of all outputs of the command, by which a former one is known.
        option: The option that names the file, for the error.

    Raises:
        InputError: The file is something else, or can't be written.
    """
    refuse_other(path, beginning.encode(), option=option)
    write_whole(path, content)


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside a path, in which to write what is moved there. It is removed at the end."""
    partial = new_partial(path.resolve())
    try:
        partial.mkdir(parents=True)
        yield partial
    finally:
        remove_partial(partial)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Create a new or empty folder atomically: yield a folder beside it that is renamed at the end.

    Raises:
        InputError: The folder is not empty, or can't be written.
    """
    refuse_full(folder)
    try:
        with partial_folder(folder) as partial:
            yield partial
            # safetensors makes files readable only by their owner
            for file in filter(Path.is_file, partial.rglob("*")):
                file.chmod(partial.stat().st_mode & 0o666)
            refuse_full(folder)  # checked again, because another process may have written it
            move_new(partial, folder.resolve())
    except (OSError, SafetensorError, WriteError) as error:
        cause = error.__cause__ if isinstance(error, WriteError) else error
        raise InputError(f"{folder} can't be written ({cause})") from cause


def refuse_full(folder: Path) -> None:
    """Raise an InputError for a folder that is not empty."""
    if not is_free(folder.resolve()):
        raise InputError(f"{folder} is there already and not empty: choose a new folder")


class WriteError(InputError):
    """A file can't be written. Its cause is the system's error."""


def write_error(path: Path, error: OSError) -> InputError:
    """Return the error for a file that can't be written."""
    if error.errno == errno.ELOOP:
        return WriteError(f"{path} is a link, and nothing is written through links: replace it by a file")
    kept = "its former content is kept"
    return WriteError(f"{path} can't be written: {error.strerror}; {kept}: fix that and run the command again")
