"""Package versions, recorded with results."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = {"zoo": "spatial-vlm-zoo", "torch": "torch", "transformers": "transformers", "lightning": "lightning"}


@cache
def versions() -> dict[str, str]:
    """Return the installed versions of the zoo and the packages that compute its answers."""
    return {name: _installed(package) for name, package in PACKAGES.items()}


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on the path
        return "not installed"
