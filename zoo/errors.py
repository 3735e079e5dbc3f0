"""The error whose message is meant for the user."""

from __future__ import annotations


class InputError(ValueError):
    """Something that was given or is missing stops the run: one line that names it and the remedy.

    main.py shows the message alone; any other exception is a bug and comes with its traceback.
    """


def input_error(error: BaseException | None) -> InputError | None:
    """The InputError behind an error, if there is one: jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
