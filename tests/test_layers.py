"""Application imports tasks imports model imports parts, also in functions and by class paths in strings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from tests.test_structure import PACKAGES, modules

# From above; a module belongs to the first layer that names it or a package around it.
LAYERS = (
    ("commands",),
    ("callbacks",),
    ("datamodules",),
    ("zoo.tasks", "lightning"),
    ("zoo.model", "zoo.generation", "zoo.checkpoints"),
    ("zoo", ""),  # parts; other libraries
)
EXCEPTIONS = {  # where a module looks upward, each by name
    ("zoo.model", "SpatialVLM.answer", "datamodules.inference"),
    # a function for outside checks, which compares the data's pictures with those of the published code
    ("zoo.checkpoints.official_parts", "official_pictures", "datamodules.resize"),
}
CLASS_PATH = rf"(?<![\w./-])(?:{'|'.join(PACKAGES)}|lightning)(?:\.\w+)+"
KNOWN = modules()
# The menus: public names that are imported when they are first used, from any layer of their package.
MENUS = ("zoo", "datamodules", "callbacks")


def layer_of(module: str) -> int:
    """The number of a module's layer, 0 for the highest."""
    around = [module, *(module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)), ""]
    return next(n for name in around for n, layer in enumerate(LAYERS) if name in layer)


def defined_in(path: str) -> str:
    """The module behind a dotted path: of a public name, of a class in a module, or the module itself."""
    package, _, name = path.partition(".")
    if package in MENUS and name in import_module(package).__all__:
        return str(getattr(import_module(package), name).__module__)
    while path.rpartition(".")[0] and path not in KNOWN:
        path = path.rpartition(".")[0]
    return path


class Uses(ast.NodeVisitor):
    """Finds the modules that a file imports anywhere or names in a string, and the class and function that do so.

    What is imported in a function or for type checking alone counts; what a docstring names does not.
    """

    def __init__(self, source: str) -> None:
        self.place: list[str] = []
        self.found: set[tuple[str, str]] = set()  # place, module
        self.visit(ast.parse(source))

    def add(self, path: str) -> None:
        self.found.add((".".join(self.place), defined_in(path)))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.add(f"{node.module}.{alias.name}")

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            for path in re.findall(CLASS_PATH, node.value):
                self.add(path)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef | ast.FunctionDef) -> None:
        self.place.append(node.name)
        self.generic_visit(node)
        self.place.pop()

    visit_FunctionDef = visit_ClassDef


@cache
def uses(source: str) -> frozenset[tuple[str, str]]:
    """The places of a source and the modules that these use."""
    return frozenset(Uses(source).found)


def upward(module: str, source: str) -> Iterator[tuple[str, str, str]]:
    """What a module of this source uses of the layers above it: the module, the place in it, the other module."""
    for place, other in sorted(uses(source)):
        if layer_of(other) < layer_of(module):
            yield module, place, other


def test_no_layer_uses_a_higher_one() -> None:
    """Nor what is not installed with the packages."""
    sources = {name: Path(path).read_text(encoding="utf-8") for name, path in KNOWN.items()}
    used = {other.partition(".")[0] for source in sources.values() for _, other in uses(source)}
    assert "torch" in used and not used & {"docs", "tests", "benchmarks"}
    assert {use for name, source in sources.items() for use in upward(name, source)} == EXCEPTIONS


@pytest.mark.parametrize(
    ("module", "source", "place", "other"),
    [
        ("zoo.fusions.base", "from zoo.model import SpatialVLM", "", "zoo.model"),
        ("zoo.scenes", "def f():\n    from zoo import VideoQATask", "f", "zoo.tasks.video_qa"),
        ("zoo.scenes", "class A:\n    def f(self):\n        import lightning.pytorch", "A.f", "lightning"),
        ("zoo.model", "resolve_name('zoo.tasks.models:PRoPEMLLM')", "", "zoo.tasks.models"),
        ("zoo.tasks.base", "path = f'{datamodules.Rooms} datamodules.Rooms'", "", "datamodules.sources.rooms.source"),
        ("datamodules.depth", "x = {'class_path': 'callbacks.MetricsCallback'}", "", "callbacks.metrics"),
        ("zoo.scenes", "if TYPE_CHECKING:\n    from zoo.model import SpatialVLM", "", "zoo.model"),
        ("callbacks.metrics", "def f():\n    from commands.score import score", "f", "commands.score"),
        ("zoo.scenes", "def f():\n    '''As `zoo.model.SpatialVLM`.'''", None, None),
        ("zoo.scenes", "from zoo import PRoPE\nx = 'trainer.callbacks.monitor'", None, None),
        ("datamodules.depth", "from zoo.tasks import Task", None, None),
    ],
)
def test_what_counts_as_a_use(module: str, source: str, place: str | None, other: str | None) -> None:
    assert list(upward(module, source)) == ([] if place is None else [(module, place, other)])


def test_a_dataset_is_used_by_no_general_part_of_the_data_or_the_studies() -> None:
    """`datamodules.depth` renders no rooms itself, and studies take nothing from a dataset."""
    general = [name for name in KNOWN if name == "datamodules.depth" or name.startswith("commands.studies")]
    assert "commands.studies.jobs" in general
    for name in general:
        used = {other for _, other in uses(KNOWN[name].read_text(encoding="utf-8"))}
        assert not {other for other in used if other.startswith("datamodules.sources")}, name
