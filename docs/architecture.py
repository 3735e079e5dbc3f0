"""Update the tables of docs/architecture.md.

python -m docs.architecture
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from timings.tables import filled, markdown

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"


class Seam(NamedTuple):
    """One kind of part: its location, the classes that it implements, and the option by which a user chooses it."""

    part: str
    files: str  # a folder, or a file
    bases: tuple[str, ...]
    chosen_by: str
    listed_in: tuple[str, ...]


ZOO, DATA = "zoo/__init__.py", "datamodules/__init__.py"
ENCODINGS = ("zoo/encodings/__init__.py", ZOO, "docs/symmetries.py")
SAMPLERS = ("datamodules/samplers/__init__.py", DATA)
SEAMS = (
    Seam("camera encoding", "zoo/encodings/", ("CameraEncoding", "MatrixEncoding"), "--model.camera_encoding",
         ENCODINGS),
    Seam("view mixer", "zoo/encodings/", ("ViewMixer",), "--model.view_mixer", ENCODINGS),
    Seam("geometry encoder", "zoo/geometry/", ("GeometryEncoder",), "--model.geometry",
         ("zoo/geometry/__init__.py", ZOO)),
    Seam("fusion", "zoo/fusions/", ("Fusion",), "--model.fusion", ("zoo/fusions/__init__.py", ZOO)),
    Seam("time index", "zoo/sequences/time_index.py", ("TimeIndex",), "--model.time_index",
         (ZOO,)),
    Seam("backbone", "zoo/backbones/", ("Backbone", "BackboneLoader", "Preprocessor"), "--model.backbone",
         ("zoo/backbones/__init__.py", ZOO)),
    Seam("objective", "zoo/objectives/", ("Objective", "LayerObjective"), "--model.objectives",
         ("zoo/objectives/__init__.py", ZOO)),
    Seam("model", "zoo/tasks/models.py", ("VideoQATask",), "--model", ("zoo/tasks/__init__.py", ZOO)),
    Seam("frame sampler", "datamodules/samplers/", ("FrameSampler",), "--data.sampler", SAMPLERS),
    Seam("frame pairing", "datamodules/samplers/base.py", ("FramePairing",), "--data.frame_pairing", SAMPLERS),
    Seam("dataset", "datamodules/sources/", ("SceneSource",), "--data.source",
         ("datamodules/sources/__init__.py", DATA)),
    Seam("benchmark", "zoo/benchmarks/", ("SpatialBenchmark", "FreeAnswers"), "score --benchmark",
         ("zoo/benchmarks/__init__.py",)),
)  # fmt: skip


def document() -> str:
    """Return docs/architecture.md with up-to-date tables."""
    return filled(DOCUMENT, {"seams": seam_table()})


def seam_table() -> str:
    """Return a table with one row per kind of part."""
    return markdown(
        [
            {
                "a new": seam.part,
                "is one file in": link(seam.files),
                "implements": ", ".join(link(file_of(base, seam.files), f"`{base}`") for base in seam.bases),
                "is chosen by": f"`{seam.chosen_by}`",
                "is also listed in": ", ".join(map(link, seam.listed_in)),
            }
            for seam in SEAMS
        ]
    )


def file_of(base: str, files: str) -> str:
    """Return the file that defines a base class, among the files of a seam or beside them."""
    path = ROOT / files
    files_there = (path if path.is_dir() else path.parent).rglob("*.py")
    found = next(file for file in files_there if f"\nclass {base}(" in file.read_text(encoding="utf-8"))
    return found.relative_to(ROOT).as_posix()


def link(path: str, text: str | None = None) -> str:
    """Return a Markdown link from docs/ to a file or folder of the repository."""
    return f"[{text or path}](../{path})"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
