"""A null where a class takes none: jsonargparse lets it through, and the class would fail on it with a traceback."""

from __future__ import annotations

import inspect
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace

from zoo.errors import InputError


def reject_nulls(settings: Any, at: str = "") -> None:
    """Looks at the arguments of each class that the settings name.

    Args:
        settings: parsed, before anything is built.
        at: the option that they are of.

    Raises:
        InputError: a null for a parameter whose type has none, with the option's name.
    """
    if isinstance(settings, list):
        for each in settings:
            reject_nulls(each, at)
    if not isinstance(settings, Namespace):
        return
    given, named = vars(settings), settings.get("class_path")
    if isinstance(named, str):
        given = vars(settings.get("init_args") or Namespace())
        for name, value in given.items():
            if value is None and not takes_null(resolve_name(named), name):
                raise InputError(f"{at}.{name}: null, where it needs a value; leave it out for the default")
    for name, value in given.items():
        reject_nulls(value, f"{at}.{name}".lstrip("."))


def takes_null(part: Any, name: str) -> bool:
    """Whether a parameter may be None: by its type, or because that is its default, or because its type isn't known."""
    for base in inspect.getmro(part) if inspect.isclass(part) else (part,):
        try:
            parameters = inspect.signature(base).parameters
        except ValueError:  # one that isn't written in Python
            return True
        if name in parameters:
            annotation = parameters[name].annotation
            unknown = annotation is inspect.Parameter.empty or parameters[name].default is None
            return unknown or "None" in str(annotation) or "Optional" in str(annotation)
    return True
