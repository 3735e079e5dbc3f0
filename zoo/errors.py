"""The error whose message is meant for the user."""

from __future__ import annotations

from typing import get_args

# what goes wrong with one scene, be it its files or what a model makes of them: it is recorded, and the rest goes on.
# Any other error is a bug.
SCENE_FAULTS = (OSError, ValueError, LookupError, RuntimeError, MemoryError)


class InputError(ValueError):
    """Something that was given or is missing stops the run: one line that names it and the remedy.

    main.py shows the message alone; any other exception is a bug and comes with its traceback.
    """


def check_choice(name: str, value: object, choices: object) -> None:
    """InputError if a value is none of a `Literal`'s: the command line checks that itself, Python does not."""
    known = get_args(choices)
    if value not in known:
        raise InputError(f"{name} is one of {', '.join(map(str, known))}, not {value!r}")


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError behind an error, if there is one: jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
