"""Names that must be known."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection
from typing import Any

from zoo.errors import InputError, did_you_mean


def check_names(names: Collection[Any], known: Collection[Any], what: str) -> None:
    """Raise InputError for a name that is unknown or given twice."""
    for name in names:
        if name not in known:
            names_known = [str(each) for each in known]
            meant = did_you_mean(str(name), names_known) or f"; known: {shlex.join(names_known)}"
            raise InputError(f"there is no {what} {name}{meant}")
    if twice := [str(name) for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{what} {twice[0]} is given twice")
