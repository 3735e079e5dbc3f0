"""The error whose message is meant for the user."""


class InputError(ValueError):
    """Something that was given or is missing stops the run: one line that names it and the remedy.

    main.py shows the message alone; any other exception is a bug and comes with its traceback.
    """
