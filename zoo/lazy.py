"""Lazy imports: a package's public classes are imported when they are first used (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def lazy_exports(package: str, exports: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """Return a package's `__getattr__` and `__all__`.

    Args:
        package: Name of the package.
        exports: Public names by the module that defines them, relative to the package. One more dot is the
            package above, as in an import.
    """
    modules = {name: f".{module}" for module, names in exports.items() for name in names}

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name], package), name)

    return load, sorted(modules)
