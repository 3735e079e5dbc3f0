"""Errors of users' own classes and of other libraries, as one line."""

from __future__ import annotations

import errno
import inspect
import traceback
from importlib import import_module
from pathlib import Path

from zoo.errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # the disk, a user's quota, a limit of the shell
NOT_OURS = ("<frozen", "site-packages", "importlib")  # files whose lines tell a user nothing


def failed_construction(error: Exception) -> InputError:
    """Returns what a constructor raised: jsonargparse wraps it once for every part around the one that failed."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, InputError):
        cause = cause.__cause__
    if isinstance(cause, InputError):
        return cause
    frames = (frame for frame, _ in traceback.walk_tb(cause.__traceback__))
    built = next((frame.f_locals["self"] for frame in frames if frame.f_code.co_name == "__init__"), None)
    subject = "the model or the data" if built is None else type(built).__name__
    return InputError(f"{subject} can't be built: {one_line(cause)}")


def unusable_class(path: str) -> str | None:
    """Returns why the class of an import path can't be built: it can't be imported, or is abstract. Else None."""
    module, _, name = path.rpartition(".")
    if not all(word.isidentifier() for word in path.split(".")) or not module:
        return None
    try:
        kind = getattr(import_module(module), name)
    except Exception as error:  # whatever the module raises
        return f"{path} can't be imported: {one_line(error)}"
    if inspect.isabstract(kind):
        return f"{path} is abstract: it lacks {', '.join(sorted(kind.__abstractmethods__))}"
    return None


def known_fault(error: BaseException | None) -> InputError | None:
    """Returns what a user can mend: a full disk, or a score that no part logs. None is a bug."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            place = error.filename2 or error.filename or "a file"
            return InputError(f"{place} can't be written: {error.strerror}; free some space, then run it again")
        text = " ".join(str(error).split())
        if type(error).__name__ == "MisconfigurationException" or text.startswith("Early stopping conditioned on"):
            return InputError(f"trainer: {text}")
        error = error.__cause__ or error.__context__
    return None


def one_line(error: BaseException) -> str:
    """Returns type, message and place of an error; no place in another library."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, SyntaxError):  # its message has the place
        return text
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in frame.filename for part in (*NOT_OURS, __file__))]
    return f"{text} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else text
