"""The error whose message is meant for the user, and one-line descriptions of other errors."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

# Errors in a scene's files or in the model for one scene. They are recorded and the run continues. Any other error is a
# bug.
SCENE_FAULTS = (OSError, ValueError, LookupError, RuntimeError, MemoryError)
MESSAGES = (OSError, ValueError, MemoryError)  # if the zoo's own code raises these, the text is meant for the user
TRACEBACK = "ZOO_TRACEBACK"  # environment variable set by `main.py --traceback`; data workers and DDP inherit it

ROOT = Path(__file__).parents[1]
PACKAGES = ("zoo", "datamodules", "evaluation", "run_folder", "callbacks")
ZOO = tuple(f"{ROOT / package}{os.sep}" for package in PACKAGES)
# Files whose lines do not help a user: Python's own, <string> and similar, installed packages (dist-packages on
# Debian), and the commands, which only pass errors on.
PASSED_ON = re.compile(
    rf"<|{re.escape(sysconfig.get_path('stdlib'))}/|.*/(site|dist)-packages/(?!({'|'.join(PACKAGES)})/)"
    rf"|{re.escape(str(ROOT / 'commands'))}/"
)
REMOTE = "Traceback (most recent call last)"  # in the text of an error that PyTorch passes on from another process
# characters that control a terminal or the direction of a line, and halves of surrogate pairs, which can't be encoded
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """Wrong or missing input that stops the run. The message is one line that names the input and the remedy.

    main.py shows only the message. Any other exception is a bug. An exception from a user's own part is shown as one
    line with its place, and one from the zoo with its traceback.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(" ".join(str(message).splitlines())))  # names may contain line breaks


def printable(text: str) -> str:
    """Return a text from a user's file as it is safe to print, with escapes in place of `UNPRINTABLE` characters."""
    return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise an InputError for a value that a `Literal` does not contain.

    The command line checks this itself. Python does not.
    """
    known = get_args(choices)
    if value not in known:
        raise InputError(f"{name} is one of {', '.join(map(str, known))}, not {value!r}")


def closest(name: str, known: Iterable[str]) -> str:
    """Return the most similar known name, ignoring case, or an empty text."""
    by_lower_case = {each.lower(): each for each in known}
    alike = get_close_matches(name.lower(), by_lower_case, 1)
    return by_lower_case[alike[0]] if alike else ""


def did_you_mean(name: str, known: Iterable[str], suffix: str = "") -> str:
    """Return the end of a message about an unknown name: a suggestion, or nothing."""
    guess = closest(name, known)
    return f"; did you mean {guess}{suffix}?" if guess else ""


@contextmanager
def add_file_to_errors(file: object) -> Iterator[None]:
    """Add the file's name to any error of building or filling a model from it.

    The content of the file determines which exceptions are raised.
    """
    try:
        yield
    except Exception as error:
        reason = str(input_error(error) or describe(unwrapped(error)))
        names_file = re.search(rf"(?<!\w){re.escape(str(file))}(?!\w)", reason)  # not as a part of another word
        raise InputError(reason if names_file else f"{file}: {reason}") from error


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the error that it was raised from, and so on.

    The error that was being handled meanwhile (`__context__`) is left out, because a bug in the handling is not the
    handled error.
    """
    while error is not None:
        yield error
        error = error.__cause__


def input_error(error: BaseException | None) -> InputError | None:
    """Return the InputError that an error is or was raised from. None if there is none."""
    return next((each for each in causes(error) if isinstance(each, InputError)), None)


def unwrapped(error: BaseException) -> BaseException:
    """Return the error that a constructor raised. jsonargparse wraps it once per part around the one that failed."""
    *_, last = chain = [*causes(error)]
    return next((each for each in chain if not _is_of_jsonargparse(each)), last)


def _is_of_jsonargparse(error: BaseException) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("jsonargparse.")


def raised_at(error: BaseException) -> str | None:
    """Return the last line outside of the zoo and the libraries that an error passed, as `file:line`.

    This line is in a user's own part, script or callback, which raised the error or called what raised it. None if
    there is none.
    """
    return next((f"{file}:{line}" for file, line in _passed(error) if not file.startswith(ZOO)), None)


def describe(error: BaseException) -> str:
    """Return an error as one line: its message, with type and place unless the message is meant to stand alone."""
    text, place = str(error), raised_at(error)
    line = " ".join(text.split())
    if isinstance(error, InputError) or (place is None and isinstance(error, MESSAGES)):
        return line or type(error).__name__
    typed = f"{type(error).__name__}: {line}".removesuffix(": ")
    if isinstance(error, SyntaxError):  # the message contains the place
        return typed
    if REMOTE in text:
        typed = text.strip().splitlines()[-1]
    place = place or next((f"{file}:{number}" for file, number in _passed(error)), None)
    return f"{typed} ({place})" if place else typed


def describe_fault(error: BaseException) -> str:
    """Describe an error that is recorded without stopping the run. Print its traceback if tracebacks are enabled."""
    if wants_traceback():
        traceback.print_exception(error)
    return describe(error)


def wants_traceback() -> bool:
    """Return whether the command line or the environment asks for whole tracebacks."""
    return os.environ.get(TRACEBACK, "0") != "0"


def _passed(error: BaseException) -> list[tuple[str, int]]:
    """Return files and lines that an error passed, last one first, without those of libraries."""
    if REMOTE in str(error):
        lines = [(file, int(line)) for file, line in re.findall(r'File "(.+?)", line (\d+)', str(error))]
    else:
        lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return [(file, line) for file, line in reversed(lines) if not PASSED_ON.match(file)]
