"""The classes that a command line may name without their module: the public ones of `zoo` and `datamodules`."""

from __future__ import annotations

import inspect

import datamodules
import zoo


def registered_classes(base: type = object) -> list[type]:
    """Imports the public classes and returns the concrete subclasses of `base`."""
    exports = [getattr(package, name) for package in (zoo, datamodules) for name in package.__all__]
    return [
        part for part in exports if inspect.isclass(part) and not inspect.isabstract(part) and issubclass(part, base)
    ]
