"""The license of released geometry encoders whose weights are not for commercial use."""

from __future__ import annotations

import sys
from functools import cache

from zoo.progress import is_first_process


@cache  # once per process
def announce_license(path: str) -> None:
    """Prints that weights are not for commercial use: VGGT-1B's, and the large, giant and nested ones of DA3."""
    if is_first_process():
        print(f"{path}: these weights are under CC BY-NC 4.0, for non-commercial use only", file=sys.stderr)
