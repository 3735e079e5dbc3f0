"""docs/architecture.md: its tables are up to date, and what it states about parts, files and imports holds."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from docs.architecture import DOCUMENT, PATH, ROOT, SEAMS, document
from tests.zoo import asking

PARTS = (
    "zoo/backbones/",
    "zoo/geometry/",
    "zoo/encodings/",
    "zoo/fusions/",
    "zoo/benchmarks/",
    "zoo/objectives/",
    "zoo/sequences/time_index.py",
)
NOT_COUNTED = {  # each is named in the document
    *(
        "zoo/positions.py",
        "zoo/cameras/rays.py",
        "zoo/scenes.py",
        "zoo/cameras/cameras.py",
        "zoo/cameras/poses.py",
        "zoo/precision.py",
    ),
    *("zoo/sequences/packing.py", "zoo/sequences/visual_grid.py", "zoo/requirements.py", "zoo/errors.py"),
}


def test_tables_are_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()


def test_the_figure_shows_each_part_that_has_an_option() -> None:
    figure = DOCUMENT.read_text(encoding="utf-8").split("```mermaid\n")[1].split("```")[0]
    parts = {seam.bases[0] for seam in SEAMS if seam.chosen_by.startswith(("--model.", "--data."))}
    assert len(parts) > 8 and parts <= set(re.findall(r"\w+", figure))


def test_every_file_named_exists() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = set(re.findall(r"\b((?:zoo|datamodules|callbacks|commands|configs|docs|tests)/(?:[\w/]+\.\w+)?)", text))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert all((ROOT / file).exists() for seam in SEAMS for file in (seam.files, *seam.listed_in))


def executed_files(run: Callable[[], Any]) -> set[str]:
    """Files of the repository's packages whose functions a call runs."""
    found: set[str] = set()

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    names = {Path(file).relative_to(ROOT).as_posix() for file in found if Path(file).is_relative_to(ROOT)}
    return {name for name in names if name.startswith(("zoo/", "datamodules/"))}


def test_a_training_step_runs_at_most_six_files_beside_the_parts() -> None:
    task = asking.build("prope.yaml")
    scenes = [asking.scene("a", asking.QUESTIONS[:2]), asking.scene("b", asking.QUESTIONS[:1])]
    executed = executed_files(lambda: task.loss(asking.batch(task, *scenes, training=True)))
    assert len(PATH) <= 6
    assert {file for file in executed if not file.startswith(PARTS)} == PATH.keys() | NOT_COUNTED
    assert all(f"`{file}`" in DOCUMENT.read_text(encoding="utf-8") for file in NOT_COUNTED)
