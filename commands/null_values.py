"""Refuses a null for a parameter that takes none: jsonargparse 4.53 accepts it, and the class then fails."""

from __future__ import annotations

import inspect
from pkgutil import resolve_name
from typing import Any

from jsonargparse import Namespace

from zoo.errors import InputError


def reject_nulls(settings: Any, option: str = "") -> None:
    """Checks the arguments of each class in parsed settings, before anything is built.

    Args:
        settings: the parsed settings, or a part of them.
        option: name of the part.

    Raises:
        InputError: a null for a parameter whose type has none.
    """
    if isinstance(settings, list):
        for part in settings:
            reject_nulls(part, option)
    if not isinstance(settings, Namespace):
        return
    arguments, class_path = vars(settings), settings.get("class_path")
    if isinstance(class_path, str):
        arguments = vars(settings.get("init_args") or Namespace())
        for name, value in arguments.items():
            if value is None and not accepts_null(resolve_name(class_path), name):
                raise InputError(f"{option}.{name}: null, but a value is required; leave it out for the default")
    for name, value in arguments.items():
        reject_nulls(value, f"{option}.{name}".lstrip("."))


def accepts_null(part: Any, name: str) -> bool:
    """Returns whether a parameter may be None: by its type or its default, or because its type is unknown."""
    for base in inspect.getmro(part) if inspect.isclass(part) else (part,):
        try:
            parameters = inspect.signature(base).parameters
        except ValueError:  # a class that is not written in Python
            return True
        if name in parameters:
            annotation = parameters[name].annotation
            unknown = annotation is inspect.Parameter.empty or parameters[name].default is None
            return unknown or "None" in str(annotation) or "Optional" in str(annotation)
    return True
