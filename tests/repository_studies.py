"""The studies of the repository, of which each is read once: it takes up to half a second."""

from __future__ import annotations

from contextlib import chdir
from functools import cache
from pathlib import Path

from commands.studies.reading import read_study
from commands.studies.study_file import Study

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "studies").glob("*.yaml"))


@cache
def study_named(name: str) -> Study:
    """Return a study of the repository, whose documents are named from there."""
    with chdir(ROOT):
        return read_study(ROOT / "studies" / f"{name}.yaml")
