"""Update the licenses of published models in docs/guide/published_models.md.

python -m docs.licenses
"""

from __future__ import annotations

from pathlib import Path

from timings.tables import filled, markdown
from zoo.backbones.base import loaders

DOCUMENT = Path(__file__).parent / "guide" / "published_models.md"


def document() -> str:
    """Return the page with a row per published model."""
    found = dict.fromkeys(loader.licensed for loader in loaders() if loader.__module__.startswith("zoo."))
    rows = [each._asdict() for each in found if each is not None]
    return filled(DOCUMENT, {"licenses": markdown(sorted(rows, key=lambda row: row["weights"]))})


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
