"""A folder to run studies in, with a main.py that is faked."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.studies import document, processes
from tests.commands.studies.faked import FakeMain, write_study


@pytest.fixture
def main_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMain:
    """The faked main.py, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    fake = FakeMain()
    monkeypatch.setattr(processes, "main_py", fake)
    monkeypatch.setattr(document, "draw", lambda *arguments: arguments[-1].touch())  # drawing takes seconds
    return fake


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """The study of toy settings."""
    return write_study(tmp_path / "studies/toys.yaml")
