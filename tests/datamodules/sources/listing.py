"""What a source says of the scenes that it could not list."""

from __future__ import annotations

from datamodules.sources import SceneSource


def totals(source: SceneSource) -> dict[str, int]:
    """How many questions each absent scene has."""
    return {name: counts.total() for name, counts in source.missing.items()}
