"""One thread: what is measured here is small, and bits depend on the order of sums."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def always_one_thread(one_thread: None) -> None:
    """For every test of this folder."""
