"""The tables of docs/architecture.md and its figure.

python -m docs.architecture                    # updates docs/architecture.md and docs/architecture.svg
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENT, FIGURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "architecture.svg"

PATH = {
    "datamodules/collate.py": "`Collate` turns loaded scenes into a batch: one `SceneInputs` per scene, one row of "
    "token ids and labels per question.",
    "zoo/tasks/video_qa.py": "`VideoQATask.losses` encodes the scenes, packs the questions of each scene into one "
    "sequence, and passes the hidden states of the decoder to the objectives.",
    "zoo/model.py": "`SpatialVLM.encode_scenes` and `SpatialVLM.build_inputs` call the parts in order.",
    "zoo/scene_encoding/stages.py": "Calls the vision tower once for all scenes, then the view mixer and the fusion.",
    "zoo/scene_encoding/scene_cameras.py": "Computes one camera per temporal patch of a scene, then the cameras of "
    "whole sequences.",
    "zoo/sequences/layout.py": "`SequenceLayout` locates the visual tokens of each sequence, with their "
    "temporal patch, grid cell and camera.",
}


class Seam(NamedTuple):
    """One kind of part: where it lives, what it implements, and how a user chooses it."""

    part: str
    files: str  # a folder, or a file
    bases: tuple[str, ...]
    chosen_by: str
    listed_in: tuple[str, ...]


ZOO, DATA = "zoo/__init__.py", "datamodules/__init__.py"
TABLE = "benchmarks/symmetries.py"
SEAMS = (
    Seam("camera encoding", "zoo/encodings/", ("CameraEncoding", "MatrixEncoding"), "--model.camera_encoding",
         (ZOO, TABLE)),
    Seam("view mixer", "zoo/encodings/", ("ViewMixer",), "--model.view_mixer", (ZOO, TABLE)),
    Seam("geometry encoder", "zoo/geometry/", ("GeometryEncoder",), "--model.geometry", (ZOO,)),
    Seam("fusion", "zoo/fusions/", ("Fusion",), "--model.fusion", (ZOO,)),
    Seam("time index", "zoo/sequences/time_index.py", ("TimeIndex",), "--model.time_index", (ZOO,)),
    Seam("backbone", "zoo/backbones/", ("Backbone", "BackboneLoader", "Preprocessor"), "--model.backbone", (ZOO,)),
    Seam("objective", "zoo/objectives/", ("Objective", "LayerObjective"), "--model.objectives", (ZOO,)),
    Seam("model", "zoo/tasks/models.py", ("VideoQATask",), "--model", (ZOO,)),
    Seam("frame sampler", "datamodules/samplers/", ("FrameSampler",), "--data.sampler", (DATA,)),
    Seam("frame pairing", "datamodules/samplers/frame_pairing.py", ("FramePairing",), "--data.frame_pairing", (DATA,)),
    Seam("dataset", "datamodules/sources/", ("SceneSource",), "--data.source", (DATA,)),
    Seam("benchmark", "zoo/benchmarks/", ("SpatialBenchmark", "FreeAnswers"), "score --benchmark",
         ("zoo/benchmarks/__init__.py",)),
)  # fmt: skip


def document() -> str:
    """Returns docs/architecture.md with up-to-date tables between its comments `<!-- name -->` and `<!-- end -->`."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, section in {"path": path_table(), "seams": seam_table()}.items():
        before, rest = text.split(f"<!-- {name} -->\n")
        text = f"{before}<!-- {name} -->\n\n{section}\n\n{rest[rest.index('<!-- end -->') :]}"
    return text


def path_table() -> str:
    """Returns a Markdown table with one row per file on the path of a batch."""
    rows = [f"| {i} | {link(file)} | {sentence} |" for i, (file, sentence) in enumerate(PATH.items(), 1)]
    return "\n".join(["| | file | role |", "|---|---|---|", *rows])


def seam_table() -> str:
    """Returns a Markdown table with one row per kind of part."""
    lines = [
        "| a new | is one file in | implements | is chosen by | is also listed in | smallest one, lines |",
        "|---|---|---|---|---|---|",
    ]
    for seam in SEAMS:
        bases = ", ".join(link(file_of(base, seam.files), f"`{base}`") for base in seam.bases)
        listed = ", ".join(map(link, seam.listed_in))
        name, count = smallest(seam)
        lines.append(
            f"| {seam.part} | {link(seam.files)} | {bases} | `{seam.chosen_by}` | {listed} | {name}, {count} |"
        )
    return "\n".join(lines)


def file_of(base: str, files: str) -> str:
    """The file that defines a base class, among the files of a seam or beside them."""
    path = ROOT / files
    files_there = (path if path.is_dir() else path.parent).rglob("*.py")
    found = next(file for file in files_there if f"\nclass {base}(" in file.read_text(encoding="utf-8"))
    return found.relative_to(ROOT).as_posix()


def smallest(seam: Seam) -> tuple[str, int]:
    """The smallest implementation and its number of lines, with docstrings and comments.

    A file; a folder for a backbone, beside the files that backbones share; a class where one file holds all.
    """
    path = ROOT / seam.files
    if path.is_file():
        count, name = min((num_lines(node), node.name) for node in subclasses(path, seam.bases))
        return f"`{name}`", count
    files = {file for file in path.rglob("*.py") if subclasses(file, seam.bases)}
    if seam.part == "backbone":
        folders = (file.parent for file in path.glob("*/backbone.py"))
        count, name = min((sum(map(file_lines, each.glob("*.py"))), f"{each.name}/") for each in folders)
    else:
        count, name = min((file_lines(file), file.relative_to(path).as_posix()) for file in files)
    return link(seam.files + name), count


def subclasses(file: Path, bases: tuple[str, ...]) -> list[ast.ClassDef]:
    """The classes in a file that derive from one of these directly, without abstract ones."""
    classes = [node for node in parse(file).body if isinstance(node, ast.ClassDef)]
    classes = [node for node in classes if "@abstractmethod" not in ast.unparse(node)]
    return [node for node in classes if {base.id for base in node.bases if isinstance(base, ast.Name)} & set(bases)]


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def file_lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def num_lines(node: ast.ClassDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def link(path: str, text: str | None = None) -> str:
    """A Markdown link from docs/ to a file or folder of the repository."""
    return f"[{text or path}](../{path})"


# ---- figure -----------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 920, 700
STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
    .name { font-weight: 600 }
    .file { font: 12px ui-monospace, monospace; fill: #59636e }
    .band-title { text-anchor: start; font: 12px ui-monospace, monospace; fill: #59636e }
    .band { fill: #f6f8fa; stroke: #d1d9e0 }
    .box { fill: #ffffff; stroke: #59636e }
    .seam { fill: #ddf4ff; stroke: #0969da }
    .arrow { stroke: #59636e; stroke-width: 1.5; fill: none; marker-end: url(#head) }
    .head { fill: #59636e }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .file, .band-title { fill: #9198a1 }
      .band { fill: #151b23; stroke: #3d444d }
      .box { fill: #0d1117; stroke: #9198a1 }
      .seam { fill: #0c2d6b; stroke: #4493f8 }
      .arrow { stroke: #9198a1 }
      .head { fill: #9198a1 }
    }
"""

BANDS = (  # title, y, height
    ("from a video to a batch", 10, 106),
    ("SpatialVLM.encode_scenes, zoo/model.py", 146, 202),
    ("SpatialVLM.build_inputs, zoo/model.py", 378, 106),
    ("decoder, then loss or answers", 514, 176),
)


class Box(NamedTuple):
    """One box of the figure: two lines of text, the left upper corner, and whether it is a seam."""

    name: str
    file: str
    x: int
    y: int
    width: int = 200
    is_seam: bool = True

    @property
    def top(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y

    @property
    def bottom(self) -> tuple[int, int]:
        return self.x + self.width // 2, self.y + 56

    @property
    def left(self) -> tuple[int, int]:
        return self.x, self.y + 28

    @property
    def right(self) -> tuple[int, int]:
        return self.x + self.width, self.y + 28


SOURCE = Box("SceneSource", "datamodules/sources/", 30, 46)
SAMPLER = Box("FrameSampler, FramePairing", "datamodules/samplers/", 270, 46, 230)
COLLATE = Box("Collate", "datamodules/collate.py", 540, 46, 350, is_seam=False)
VISION = Box("Backbone: 2D tokens", "zoo/backbones/", 30, 182)
GEOMETRY = Box("GeometryEncoder: 3D tokens", "zoo/geometry/", 310, 182, 230)
CAMERAS = Box("one camera per temporal patch", "zoo/scene_encoding/scene_cameras.py", 620, 182, 270, is_seam=False)
MIXER = Box("ViewMixer", "zoo/encodings/", 30, 278)
FUSION = Box("Fusion", "zoo/fusions/", 310, 278, 230)
LAYOUT = Box("SequenceLayout", "zoo/sequences/layout.py", 30, 414, is_seam=False)
TIME = Box("TimeIndex: position ids", "zoo/sequences/time_index.py", 310, 414, 230)
ENCODING = Box("CameraEncoding", "zoo/encodings/", 620, 414, 270)
DECODER = Box("Backbone: stock decoder, four camera hooks in its attention", "zoo/backbones/", 30, 550, 860)
LOSS = Box("Objective: losses", "zoo/objectives/", 30, 624, 250)
ANSWERS = Box("VideoQATask.predict_batch", "zoo/tasks/video_qa.py", 320, 624, 250, is_seam=False)
BENCHMARK = Box("Benchmark: prompts, scores", "zoo/benchmarks/", 620, 624, 270)
BOXES = (SOURCE, SAMPLER, COLLATE, VISION, GEOMETRY, CAMERAS, MIXER, FUSION, LAYOUT, TIME, ENCODING, DECODER, LOSS,
         ANSWERS, BENCHMARK)  # fmt: skip


def arrows() -> list[str]:
    """SVG path data of the arrows."""

    def straight(start: tuple[int, int], end: tuple[int, int]) -> str:
        return f"M{start[0]} {start[1]} L{end[0]} {end[1]}"

    def down(x: int, start: Box, end: Box) -> str:
        return straight((x, start.bottom[1]), (x, end.top[1]))

    return [
        straight(SOURCE.right, SAMPLER.left),
        straight(SAMPLER.right, COLLATE.left),
        f"M{COLLATE.bottom[0]} {COLLATE.bottom[1]} V131 H{VISION.top[0]} V{VISION.top[1]}",
        f"M{COLLATE.bottom[0]} {COLLATE.bottom[1]} V131 H{GEOMETRY.top[0]} V{GEOMETRY.top[1]}",
        f"M{COLLATE.bottom[0]} {COLLATE.bottom[1]} V131 H{CAMERAS.top[0]} V{CAMERAS.top[1]}",
        down(VISION.bottom[0], VISION, MIXER),
        down(GEOMETRY.bottom[0], GEOMETRY, FUSION),
        straight(GEOMETRY.right, CAMERAS.left),
        straight(MIXER.right, FUSION.left),
        # cameras to the view mixer, above the second row
        f"M680 {CAMERAS.bottom[1]} V258 H190 V{MIXER.top[1]}",
        down(CAMERAS.bottom[0] + 40, CAMERAS, ENCODING),
        straight(LAYOUT.right, TIME.left),
        f"M{FUSION.bottom[0]} {FUSION.bottom[1]} V363 H{LAYOUT.top[0]} V{LAYOUT.top[1]}",
        down(LAYOUT.bottom[0], LAYOUT, DECODER),
        down(TIME.bottom[0], TIME, DECODER),
        down(ENCODING.bottom[0], ENCODING, DECODER),
        down(LOSS.top[0], DECODER, LOSS),
        down(ANSWERS.top[0], DECODER, ANSWERS),
        straight(ANSWERS.right, BENCHMARK.left),
    ]


def figure() -> str:
    """Returns docs/architecture.svg."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'role="img" aria-label="The parts of a model and their order">',
        f"  <style>{STYLE}  </style>",
        '  <marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" '
        'markerUnits="userSpaceOnUse" orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker>',
    ]
    for title, y, height in BANDS:
        lines.append(f'  <rect class="band" x="10" y="{y}" width="{WIDTH - 20}" height="{height}" rx="8"/>')
        lines.append(f'  <text class="band-title" x="142" y="{y + 22}">{title}</text>')
    lines += [f'  <path class="arrow" d="{data}"/>' for data in arrows()]
    for box in BOXES:
        kind, x = "seam" if box.is_seam else "box", box.top[0]
        lines.append(f'  <rect class="{kind}" x="{box.x}" y="{box.y}" width="{box.width}" height="56" rx="5"/>')
        lines.append(f'  <text class="name" x="{x}" y="{box.y + 24}">{box.name}</text>')
        lines.append(f'  <text class="file" x="{x}" y="{box.y + 44}">{box.file}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
    FIGURE.write_text(figure(), encoding="utf-8")
