"""Which combinations of a test's parameters every run takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product
from typing import Any

import pytest


def each_once(*parameters: Collection[Any]) -> list[Any]:
    """All combinations of the values; every run takes as few as have each value, and the others are slow tests.

    Args:
        parameters: The values of each parameter; of a mapping the keys are the names of the cases.
    """
    quick = {tuple(n % len(each) for each in parameters) for n in range(max(map(len, parameters)))}
    cases = []
    for places in product(*(range(len(each)) for each in parameters)):
        names, values = zip(*(_named(each, place) for each, place in zip(parameters, places, strict=True)), strict=True)
        marks = () if places in quick else pytest.mark.slow
        cases.append(pytest.param(*values, marks=marks, id="-".join(map(str, names))))
    return cases


def _named(values: Collection[Any], place: int) -> tuple[Any, Any]:
    name = list(values)[place]
    return name, values[name] if isinstance(values, Mapping) else name
