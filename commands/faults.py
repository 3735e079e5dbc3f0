"""Errors of users' own classes and of other libraries, as one line."""

from __future__ import annotations

import errno
import os
import traceback
from typing import NoReturn

from zoo.errors import InputError, causes, describe, input_error, raised_at, unwrapped

DISTRIBUTED = ("DistBackendError", "DistNetworkError")  # of torch; over gloo the error has no class of its own
UNWRITABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, then run it again"),  # of the disk, or the user's
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), then run it again",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "check its permissions, or choose another folder"),
}


def error_line(error: BaseException) -> str | None:
    """Return what the command line shows of an error. None is a bug of the zoo, which needs its traceback."""
    own = [each for each in causes(error) if not isinstance(each, InputError) and raised_at(each)]
    meant = input_error(error) or known_fault(error) or (describe(own[0]) if own else None)
    return f"{meant}; --traceback shows the calls" if own else meant and str(meant)


def raise_failed_construction(error: Exception) -> NoReturn:
    """Raise what a constructor raised, as an InputError."""
    cause = unwrapped(error)
    if isinstance(cause, InputError):
        raise cause
    frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__) if frame.f_code.co_name == "__init__"]
    # a wrapper of a constructor may have no self
    built = next((frame.f_locals["self"] for frame in frames if "self" in frame.f_locals), None)
    subject = "the model or the data" if built is None else type(built).__name__
    raise InputError(f"{subject} can't be built: {describe(cause)}") from error


def known_fault(error: BaseException) -> InputError | None:
    """Return what a user can mend: a full disk, permissions, a score that no part logs, an end of another process."""
    for each in causes(error):
        if isinstance(each, OSError) and each.errno in UNWRITABLE:
            place = os.fsdecode(each.filename2 or each.filename or "a file")
            return InputError(f"{place}: {each.strerror}; {UNWRITABLE[each.errno]}")
        text = " ".join(str(each).split())
        if type(each).__name__ == "MisconfigurationException" or text.startswith("Early stopping conditioned on"):
            return InputError(f"trainer: {text}")
        if type(each).__name__ in DISTRIBUTED or "gloo/transport" in text:
            reason = text.partition(" This is typically")[0]
            return InputError(f"another process of this run has ended, see its own error here or in its log ({reason})")
    return None
