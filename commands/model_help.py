"""`--model.help` without a class: the options of the given model, or a list of the models."""

from __future__ import annotations

import inspect

from commands.registry import registered_classes
from commands.runs import BASES
from zoo.tasks import Task

OPTION = "--model.help"


def complete_model_help(options: list[str], models: list[str]) -> list[str]:
    """Adds the model to a bare `--model.help`.

    Args:
        options: words of the command line; `--model` is read from them as well.
        models: the classes that configs name.

    Raises:
        SystemExit: after a list of the models, where none is named.
    """
    pairs = list(zip(options, [*options, "-"][1:], strict=True))
    others = [word for word, following in pairs if word != OPTION or not following.startswith("-")]
    if len(others) == len(options):
        return options
    models = [*models, *(following for word, following in pairs if word == "--model")]
    if not models:
        print(list_models())
        raise SystemExit(0)
    return [*others, f"{OPTION}={models[-1]}"]  # last: jsonargparse reads nothing after it


def list_models() -> str:
    """Returns one line per model: the option that explains it, and the first line of its docstring."""
    models = [model for model in registered_classes(Task) if model.__name__ not in BASES]
    width = max(len(model.__name__) for model in models)
    lines = [f"    {OPTION} {m.__name__:{width}}  {(inspect.getdoc(m) or '').partition(chr(10))[0]}" for m in models]
    return "\n".join(["The options of a model, also of the one that a --config names:", *lines])
