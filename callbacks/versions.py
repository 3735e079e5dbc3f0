"""The versions that made a result, to be kept beside it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Installed versions of the zoo and of what computes its answers."""
    return {
        name: _installed(package)
        for name, package in {
            "zoo": "spatial-vlm-zoo",
            "torch": "torch",
            "transformers": "transformers",
            "lightning": "lightning",
        }.items()
    }


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout on the path, not installed
        return "not installed"
