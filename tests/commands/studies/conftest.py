"""A folder to run studies in, with a main.py that is faked."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.studies import document, processes
from commands.studies.modules import Module
from commands.studies.source_code import SourceCode
from commands.studies.study_file import Run
from tests.commands.studies.faked import FakeMain, write_study

FOUND: dict[tuple[tuple[str, ...], ...], list[Module]] = {}  # the code of a training


@pytest.fixture
def modules_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of a training are found and read once, which takes a third of a second: for tests that edit none."""
    find = SourceCode.modules

    def modules(self: SourceCode, run: Run) -> list[Module]:
        key = run.configs, run.fit
        if key not in FOUND:
            FOUND[key] = find(self, run)
        return FOUND[key]

    monkeypatch.setattr(SourceCode, "modules", modules)


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
