"""The examples in docstrings run and are right."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from zoo.geometry import dataset_geometry, projection
from zoo.geometry.vggt import model


@pytest.mark.parametrize("module", [dataset_geometry, projection, model], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
