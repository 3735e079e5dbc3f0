"""The structure of the packages: no import cycle, and no backbone or benchmark named outside its folder."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("zoo", "datamodules", "callbacks", "commands")
# the models are named after their backbone, and a package's __init__ lists public names
NAMES_A_BACKBONE = (
    "zoo/backbones/",
    "zoo/checkpoints/",
    "zoo/tasks/models.py",
    "zoo/tasks/__init__.py",
    "zoo/__init__.py",
)


def modules() -> dict[str, Path]:
    """Every module of the library by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules that a file imports anywhere: at the top, in functions, and for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known else node.module for name in inside)


def cycle(graph: Mapping[str, set[str]]) -> list[str] | None:
    """Some cycle of a directed graph, by depth-first search."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        found = next((c for other in sorted(graph.get(node, ())) if (c := visit(other, [*path, node]))), None)
        done.add(node)
        return found

    return next((found for node in sorted(graph) if (found := visit(node, []))), None)


def package_of(module: str, path: Path) -> str:
    """The folder of a module; a module that lies directly in `zoo` or another package stands for itself."""
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 or path.name == "__init__.py" else module


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    found = {name: set(imports_of(path, known)) - {name} for name, path in known.items()}
    found["zoo.model"].remove("datamodules.inference")  # `SpatialVLM.answer`, see `tests.test_layers`
    return found


def test_no_module_imports_itself_through_others(graph: dict[str, set[str]]) -> None:
    assert cycle(graph) is None
    broken = {**graph, "zoo.errors": {"zoo.model"}}
    assert cycle(broken) is not None  # the control


def test_no_package_of_the_zoo_imports_itself_through_others(graph: dict[str, set[str]]) -> None:
    known = modules()
    packages: dict[str, set[str]] = {}
    for name, others in graph.items():
        own = package_of(name, known[name])
        packages.setdefault(own, set()).update(
            {package_of(other, known[other]) for other in others if other not in PACKAGES} - {own}
        )
    assert cycle(packages) is None


@pytest.mark.parametrize("place", ["zoo/model.py", "zoo/scene_encoding.py", "zoo/sequences"])
def test_the_model_knows_nothing_of_lightning(place: str) -> None:
    path = ROOT / place
    for file in path.glob("*.py") if path.is_dir() else [path]:
        code = " ".join(ast.unparse(node) for node in ast.parse(file.read_text(encoding="utf-8")).body[1:])
        assert not re.search(r"(from lightning|import lightning|Trainer\(|sys\.argv)", code), file


def names_in(path: Path) -> set[str]:
    """The identifiers of a file: no strings, no comments."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return {token.string for token in tokens if token.type == tokenize.NAME}


def test_backbones_are_named_in_their_folder_alone() -> None:
    named = {
        str(path.relative_to(ROOT)): {
            name for name in names_in(path) if re.match(r"(?i)_*(empty|tiny|pretrained)?_?qwen", name)
        }
        for path in modules().values()
        if "qwen" in path.read_text(encoding="utf-8").lower()
    }
    outside = {path: names for path, names in named.items() if names and not path.startswith(NAMES_A_BACKBONE)}
    assert not outside
    assert any(path.startswith("zoo/backbones/") and names for path, names in named.items())  # the control
