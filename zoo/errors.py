"""The error whose message is meant for the user."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import get_args

# Errors of one scene, in its files or in the model: they are recorded, and the run continues. Any other error is a bug.
SCENE_FAULTS = (OSError, ValueError, LookupError, RuntimeError, MemoryError)


class InputError(ValueError):
    """Wrong or missing input that stops the run: one line that names it and the remedy.

    main.py shows the message alone; any other exception is a bug and comes with its traceback.
    """

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).splitlines()))  # names from a user's file may hold line breaks


def check_choice(name: str, value: object, choices: object) -> None:
    """Raises an InputError for a value that a `Literal` lacks: the command line checks this itself, Python does not."""
    known = get_args(choices)
    if value not in known:
        raise InputError(f"{name} is one of {', '.join(map(str, known))}, not {value!r}")


def closest(name: str, known: Iterable[str]) -> str:
    """The known name that is most alike, whatever its case, or an empty text."""
    by_lower_case = {each.lower(): each for each in known}
    alike = get_close_matches(name.lower(), by_lower_case, 1)
    return by_lower_case[alike[0]] if alike else ""


def did_you_mean(name: str, known: Iterable[str], suffix: str = "") -> str:
    """The end of a message about an unknown name: the closest one, or nothing."""
    guess = closest(name, known)
    return f"; did you mean {guess}{suffix}?" if guess else ""


@contextmanager
def reading(file: object) -> Iterator[None]:
    """Names the file in any error of building or filling a model from it: its content decides what is raised."""
    try:
        yield
    except Exception as error:
        reason = str(input_error(error) or repr(error))
        raise InputError(reason if str(file) in reason else f"{file}: {reason}") from error


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError behind an error, if there is one: jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
