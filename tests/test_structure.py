"""Imports point downward, without circles, and the core imports no extension."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import zoo.published

ROOT = Path(__file__).parents[1]
PACKAGES = ("zoo", "datamodules", "evaluation", "run_folder", "callbacks", "commands")
# From above. A module belongs to the layer of the longest name that is its own or that of a package around it.
LAYERS = (
    ("commands",),
    ("callbacks",),
    ("run_folder",),
    ("evaluation",),
    ("datamodules",),
    ("zoo.published",),
    ("zoo.tasks", "lightning"),
    ("zoo.model", "zoo.generation", "zoo.checkpoints", "zoo.explanation"),
    ("zoo", ""),  # parts; other libraries
)
# `SpatialVLM.answer` reads videos. `official_pictures` compares the data's pictures with those of the published code.
# Two packages list the names of published models, which are imported when they are used.
EXCEPTIONS = {
    ("zoo.model", "datamodules.inference"),
    ("zoo.checkpoints.official_parts", "datamodules.resize"),
    ("zoo", "zoo.published"),
    ("zoo.checkpoints", "zoo.published"),
}
# A training of `prope.yaml`, its test and a question to it import nothing of these but what is in CORE.
EXTENSIONS = (
    *("zoo.published.", "zoo.checkpoints.", "zoo.geometry.", "zoo.fusions.", "zoo.objectives.", "zoo.tasks."),
    *("zoo.media", "zoo.positions", "zoo.explanation", "commands."),
)
CORE = {
    *("zoo.geometry.base", "zoo.geometry.cache", "zoo.geometry.dataset_geometry"),
    *("zoo.fusions.base", "zoo.fusions.entrance", "zoo.objectives.base", "zoo.objectives.camera_prediction"),
    *("zoo.tasks.base", "zoo.tasks.fsdp2", "zoo.tasks.models", "zoo.tasks.video_qa"),
    *("commands.cli", "commands.export", "commands.faults", "commands.main", "commands.parser"),
    *("commands.machine", "commands.runs"),
}
NAMES_A_BACKBONE = ("zoo.backbones", "zoo.checkpoints", "zoo.published", "zoo.tasks.models")


def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports_of(nodes: Iterable[ast.AST], known: Mapping[str, Path]) -> Iterator[str]:
    """The modules that a source imports anywhere: at the top, in functions, and for type checking."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in inside)


def layer_of(module: str) -> int:
    around = [module.rsplit(".", n)[0] for n in range(module.count(".") + 1)]
    return next(n for name in [*around, ""] for n, layer in enumerate(LAYERS) if name in layer)


def upward(graph: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    return {(name, other) for name, used in graph.items() for other in used if layer_of(other) < layer_of(name)}


Nodes = dict[str, list[ast.AST]]


@pytest.fixture(scope="module")
def nodes() -> Nodes:
    """The syntax of every module, and of main.py."""
    sources = modules() | {"main": ROOT / "main.py"}
    return {name: [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))] for name, path in sources.items()}


@pytest.fixture(scope="module")
def graph(nodes: Nodes) -> dict[str, set[str]]:
    known = modules()
    return {name: {*imports_of(nodes[name], known)} - {name} for name in known}


def test_no_layer_imports_a_higher_one_or_what_is_not_installed(graph: dict[str, set[str]]) -> None:
    assert upward(graph) == EXCEPTIONS
    assert upward({"zoo.errors": {"zoo.tasks.base", "lightning.pytorch", "torch"}}) == {  # the control
        ("zoo.errors", "zoo.tasks.base"), ("zoo.errors", "lightning.pytorch"),
    }  # fmt: skip
    used = {other.partition(".")[0] for others in graph.values() for other in others}
    assert "torch" in used and not used & {"docs", "tests", "timings"}


def test_no_module_imports_itself_through_others(graph: dict[str, set[str]]) -> None:
    graph = {name: {each for each in used if (name, each) not in EXCEPTIONS} for name, used in graph.items()}
    TopologicalSorter(graph).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter({**graph, "zoo.errors": {"zoo.model"}}).prepare()  # the control


@cache
def names_in(path: Path) -> set[str]:
    """The identifiers of a file: no strings, no comments."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_backbones_are_named_in_their_folder_alone() -> None:
    """The models of `zoo.tasks.models` are named after their backbone, and a package's __init__ lists public names."""
    backbone = re.compile(r"(?i)_*(empty|tiny|pretrained)?_?qwen")
    files = {name: path for name, path in modules().items() if path.name != "__init__.py"}
    naming = {name for name, path in files.items() if any(map(backbone.match, names_in(path)))}
    assert naming and {name for name in naming if not name.startswith(NAMES_A_BACKBONE)} == set()


REMOVES = {"rmtree", "unlink", "rmdir", "removedirs", "rename", "renames"}
REMOVES_OF = {"os": {"remove", "replace", *REMOVES}, "shutil": {"move", "rmtree"}}


def removals_in(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The calls and imports by which a source may remove, replace or rename a file."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name in REMOVES_OF.get(node.module or "", ()))
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in REMOVES_OF.get(owner, REMOVES - {"rename"}):
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # a path has one argument, and a text two; a table's columns are renamed by a keyword
            is_path = len(node.args) == 1 and not node.keywords
            yield from [node.func.attr] if is_path and node.func.attr in ("rename", "replace") else []


def test_one_module_removes_and_replaces_files(nodes: Nodes) -> None:
    """`zoo.files` proves that a file is the program's own before it removes it."""
    found = {name: [*removals_in(own)] for name, own in nodes.items() if not f"{name}.".startswith("zoo.files.")}
    assert {name: removals for name, removals in found.items() if removals} == {}
    control = "Path(a).unlink(); shutil.rmtree(a); a.rename(b); a.replace(b); os.replace(a, b); from os import remove"
    assert len([*removals_in(ast.walk(ast.parse(control)))]) == 6
    harmless = "'a'.replace('b', 'c'); table.rename(columns={}); replace(a); names.remove(a)"
    assert not [*removals_in(ast.walk(ast.parse(harmless)))]


def test_published_models_are_named_in_their_files_alone() -> None:
    """So that one more adds a file, a test and configs, and no row in a file that is there."""
    names, files = set(zoo.published.__all__), modules()
    naming = {module for module, path in files.items() if names_in(path) & names}
    assert len(naming) > 4 and {module for module in naming if not module.startswith("zoo.published.")} == set()
    assert "SpatialMLLM" in names and "SpatialMLLM" not in files["zoo.published"].read_text(encoding="utf-8")


COMMANDS = """
import json, sys
sys.path.insert(0, {root!r})
from main import main
for words in {lines}:
    sys.argv = ["main.py", *words]
    main()
core = sorted(sys.modules)
from zoo.configuration import import_named
import_named("SpatialMLLM, GRPO, Teacher")
print(json.dumps([core, sorted(sys.modules)]))
"""


def extensions_in(loaded: list[str]) -> set[str]:
    return {name for name in loaded if name.startswith(EXTENSIONS)} - CORE


@pytest.mark.slow
def test_fit_test_and_predict_import_no_extension(rooms_root: Path, tmp_path: Path) -> None:
    """`prope.yaml` needs no published model, GRPO, teacher, geometry network, `plan`, `probe` or `study`."""
    video = next(rooms_root.rglob("*.mp4"))
    small = ["--gallery.scenes", "0", "--data.num_frames", "4", "--trainer.max_steps", "1"]
    rooms = ["--config", "data_rooms.yaml", "--data.source.root", str(rooms_root), "--data.source.scenes", "[6,2,3]"]
    asked = ["--data.video", str(video), "--data.question", "How large is this room?"]
    lines = [["fit", "--config", "prope.yaml", *rooms, *small], ["test"], ["predict", *asked]]
    script = COMMANDS.format(root=str(ROOT), lines=lines)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    core, control = json.loads(done.stdout.splitlines()[-1])
    assert {*core} >= CORE and extensions_in(core) == set()
    assert extensions_in(control) > {"zoo.published.spatial_mllm", "zoo.tasks.grpo", "zoo.objectives.teacher"}
