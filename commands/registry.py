"""The classes that a command line may name: those that `zoo` and `datamodules` put on their menus."""

from __future__ import annotations

import inspect

import datamodules
import zoo


def registered_classes(base: type = object) -> list[type]:
    """Those of a kind, abstract ones left out, in alphabetical order of each menu."""
    every = [getattr(menu, name) for menu in (zoo, datamodules) for name in menu.__all__]
    return [part for part in every if inspect.isclass(part) and not inspect.isabstract(part) and issubclass(part, base)]
