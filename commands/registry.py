"""The classes that a command line may name without their module: the public ones of `zoo` and `datamodules`."""

from __future__ import annotations

import inspect

import datamodules
import zoo

BASES = ("Task", "VideoQATask")  # a scale config may set their options, but a run needs one of their models
MODEL_HELP = "--model.help"


def registered_classes(base: type = object) -> list[type]:
    """Imports the public classes and returns those of `base` that can be built."""
    exports = [getattr(package, name) for package in (zoo, datamodules) for name in package.__all__]
    parts = [part for part in exports if inspect.isclass(part) and issubclass(part, base)]
    return [part for part in parts if not inspect.isabstract(part) and part.__name__ not in BASES]


def complete_model_help(options: list[str], models: list[str]) -> list[str]:
    """Adds the model to a bare `--model.help`.

    Args:
        options: words of the command line; `--model` is read from them as well.
        models: the classes that configs name.

    Raises:
        SystemExit: after a list of the models, where none is named.
    """
    pairs = list(zip(options, [*options, "-"][1:], strict=True))
    others = [word for word, following in pairs if word != MODEL_HELP or not following.startswith("-")]
    if len(others) == len(options):
        return options
    models = [*models, *(following for word, following in pairs if word == "--model")]
    if not models:
        print("The options of a model, also of the one that a --config names:")
        for model in registered_classes(zoo.Task):
            print(f"    {MODEL_HELP} {model.__name__:15}  {(inspect.getdoc(model) or '').partition(chr(10))[0]}")
        raise SystemExit(0)
    return [*others, f"{MODEL_HELP}={models[-1]}"]  # last: jsonargparse reads nothing after it
