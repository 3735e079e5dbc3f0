"""The raw material of posed scenes, where ZOO_REALDATA has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datamodules.sources.kitchen import Kitchen


@pytest.fixture(scope="module")
def kitchen(realdata: Path) -> Kitchen:
    return Kitchen(realdata / "scenes/7scenes_redkitchen")
