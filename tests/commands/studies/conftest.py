"""A folder to run studies in, with a main.py that is faked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands.reports.bootstrap import seed_intervals
from commands.studies import document, processes, reading, sections
from commands.studies.modules import Module
from commands.studies.source_code import SourceCode
from commands.studies.study_file import Run, Study
from tests.commands.studies.faked import FakeMain, write_study

# what takes most of the time of a study whose main.py is faked, by what it is made of
PARSED: dict[str, Study] = {}
FOUND: dict[tuple[tuple[str, ...], ...], list[Module]] = {}
DIGESTS: dict[tuple[tuple[str, ...], ...], str] = {}
RESAMPLES = 500


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal studies are parsed once, and the modules of equal trainings are digested once; for tests that edit none."""
    parse = reading._parse

    def parse_once(content: dict[str, Any], path: Path) -> Study:
        key = yaml.safe_dump(content, sort_keys=False)
        if key not in PARSED:
            PARSED[key] = parse(content, path)
        return replace(PARSED[key], path=path)

    def once(method: Callable[[SourceCode, Run], Any], known: dict[tuple[tuple[str, ...], ...], Any]) -> Any:
        def call(self: SourceCode, run: Run) -> Any:
            key = run.configs, run.fit
            if key not in known:
                known[key] = method(self, run)
            return known[key]

        return call

    monkeypatch.setattr(reading, "_parse", parse_once)
    monkeypatch.setattr(SourceCode, "modules", once(SourceCode.modules, FOUND))
    monkeypatch.setattr(SourceCode, "digest", once(SourceCode.digest, DIGESTS))


@pytest.fixture
def main_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMain:
    """The faked main.py, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    fake = FakeMain()
    monkeypatch.setattr(processes, "main_py", fake)
    monkeypatch.setattr(document, "draw", lambda *arguments: arguments[-1].touch())  # drawing takes seconds
    monkeypatch.setattr(sections, "seed_intervals", partial(seed_intervals, resamples=RESAMPLES))
    return fake


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    """The study of toy settings."""
    return write_study(tmp_path / "studies/toys.yaml")
