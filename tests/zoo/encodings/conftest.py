"""One thread for all tests of this folder: the tensors are small, and bits depend on the order of summation."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """Applies `one_thread` to every test."""
