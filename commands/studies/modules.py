"""The modules behind dotted names, the project's and the user's: found through imports, and without importing them."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard

from zoo.errors import InputError
from zoo.files.fingerprint import fingerprint

ROOT = Path(__file__).parents[2]
PROJECT = ("zoo", "datamodules", "callbacks", "commands")  # of interest where they are installed as well
INSTALLED = {"site-packages", "dist-packages"}
LIBRARY = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
MAX_FILES = 2000  # of which the syntax is kept


@dataclass(frozen=True)
class Module:
    """A Python file.

    Attributes:
        name: Its dotted name; of the `__init__.py` of a package the package's.
        path: The file.
        source: Its content.
    """

    name: str
    path: Path
    source: bytes

    @property
    def is_package(self) -> bool:
        """Whether it is the `__init__.py` of a package."""
        return self.path.name == "__init__.py"

    @property
    def folder(self) -> Path:
        """Its folder, relative to the one in which top modules are."""
        parts = self.name.split(".")
        return Path(*(parts if self.is_package else parts[:-1]))

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax without docstrings, and without what only type checkers read."""
        tree = ast.parse(self.source)
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = [ast.Pass()]
        return tree

    @cached_property
    def imports(self) -> dict[str, str]:
        """The dotted names that imported names stand for; of a package also of those that it exports lazily."""
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        found: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for each in node.names:
                    top = each.name.partition(".")[0]
                    found |= {each.asname: each.name} if each.asname else {top: top, each.name: each.name}
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) + 1 - node.level] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                found |= {each.asname or each.name: f"{base}.{each.name}" for each in node.names}
            elif _exports_lazily(node):
                found |= {name: f"{self.name}.{module}" for module, name in _lazy_exports(node)}
        return found

    @cached_property
    def uses(self) -> set[str]:
        """The dotted names of its imports, with the attributes in use; of a package those alone that its code uses."""
        used = set() if self.is_package else set(self.imports.values())
        for name in _dotted_names(self.tree):
            first, dot, rest = name.partition(".")
            if first in self.imports:
                used.add(f"{self.imports[first]}{dot}{rest}")
        return used

    @cached_property
    def statements(self) -> set[str]:
        """The statements of the module without comments, docstrings and layout.

        Of imports of the project's or the same user's modules the new names alone are kept, as in `large as part`,
        since what they bring counts by itself: code may move from one file to another. A package's exports are left
        out.
        """
        ours = [node for node in self.tree.body if self._is_import_of_ours(node)]
        body = [node for node in self.tree.body if node not in ours]
        if self.is_package:
            body = [node for node in body if not any(map(_exports_lazily, ast.walk(node)))]
        renamed = (each for node in ours for each in node.names if each.asname)
        return {*map(ast.unparse, body), *(f"{each.name.rpartition('.')[2]} as {each.asname}" for each in renamed)}

    def _is_import_of_ours(self, node: ast.stmt) -> TypeGuard[ast.Import | ast.ImportFrom]:
        ours = (*PROJECT, self.name.partition(".")[0])
        if isinstance(node, ast.ImportFrom):
            return bool(node.level) or (node.module or "").partition(".")[0] in ours
        return isinstance(node, ast.Import) and all(each.name.partition(".")[0] in ours for each in node.names)

    @cached_property
    def texts(self) -> set[str]:
        """The texts in its code."""
        return set(_texts(self.tree))

    @property
    def data(self) -> list[Path]:
        """Files beside it that it reads: those that it names, such as a template, and those of its own name."""
        others = self.path.parent.iterdir()
        read = (path for path in others if path.name in self.texts or path.stem == self.path.stem)
        return sorted(path for path in read if path.is_file() and path.suffix != ".py")

    @property
    def digests(self) -> set[str]:
        """A digest of each of its statements, and of each file that it reads."""
        return self._statement_digests | {fingerprint(path.read_bytes()) for path in self.data}

    @cached_property
    def _statement_digests(self) -> set[str]:
        return {fingerprint(each.encode(errors="backslashreplace")) for each in self.statements}


class Modules:
    """The modules that can be imported, each read once.

    Args:
        folders: Where top modules are looked for, before those that this process can import.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(folders)
        self._places: dict[str, tuple[Path | None, list[Path]]] = {}
        self._modules: dict[Path, Module] = {}
        self._defining: dict[str, Module | None] = {}

    def closure(self, names: Iterable[str]) -> list[Module]:
        """Return the modules that define dotted names, and in turn those of the names that these use, sorted."""
        closure: dict[str, Module] = {}
        waiting = list(names)
        while waiting:
            module = self.defining(waiting.pop())
            if module is not None and module.name not in closure:
                closure[module.name] = module
                waiting += module.uses
        return [closure[name] for name in sorted(closure)]

    def defining(self, name: str) -> Module | None:
        """Return the module that defines a dotted name, such as `zoo.PRoPE`; None if only an installed package may.

        Raises:
            InputError: The module is no Python.
        """
        if name not in self._defining:
            self._defining[name] = None  # packages that export a name from each other
            parts = name.split(".")
            if len(parts) > 1 and all(part.isidentifier() for part in parts):
                self._defining[name] = self._define(parts)
        return self._defining[name]

    def _define(self, parts: list[str]) -> Module | None:
        module: Module | None = None
        for number, part in enumerate(parts, 1):
            file, folders = self._place(".".join(parts[:number]))
            if file is None and not folders:  # no module: an attribute of the former one
                if module is not None and module.is_package and part in module.imports:
                    return self.defining(".".join([module.imports[part], *parts[number:]]))
                return module
            module = None if file is None else self._read(".".join(parts[:number]), file)
        return module

    def _place(self, name: str) -> tuple[Path | None, list[Path]]:
        """Return the file of a module, None if it has none, and the folders of its submodules."""
        if name not in self._places:
            parent, _, last = name.rpartition(".")
            place = _look(self._place(parent)[1] if parent else self._folders, last)
            if not parent and place == (None, []):
                place = _importable(name)
            file, folders = place
            is_installed = any(map(_is_installed, [*filter(None, [file]), *folders]))
            is_ours = name.partition(".")[0] in PROJECT or not is_installed
            self._places[name] = place if is_ours else (None, [])
        return self._places[name]

    def _read(self, name: str, path: Path) -> Module:
        if path not in self._modules:
            self._modules[path] = _module(name, path, path.read_bytes())
        return self._modules[path]


def _look(folders: Iterable[Path], name: str) -> tuple[Path | None, list[Path]]:
    """Return the file and the folders of a module that is in one of the folders."""
    spaces = []
    for folder in folders:
        if (init := folder / name / "__init__.py").is_file():
            return init, [folder / name]
        if (file := folder / f"{name}.py").is_file():
            return file, []
        spaces += [folder / name] if (folder / name).is_dir() else []
    return None, spaces  # a namespace package


def _importable(name: str) -> tuple[Path | None, list[Path]]:
    """Return the file and the folders of a top module that this process can import."""
    try:
        spec = find_spec(name)
    except ValueError:  # of __main__
        return None, []
    origin = "" if spec is None else spec.origin or ""
    folders = [] if spec is None else spec.submodule_search_locations or []
    return Path(origin) if origin.endswith(".py") else None, [Path(folder) for folder in folders]


def _is_installed(path: Path) -> bool:
    return bool(INSTALLED & set(path.parts)) or any(path.resolve().is_relative_to(folder) for folder in LIBRARY)


@lru_cache(MAX_FILES)  # a study looks at the modules again after each training
def _module(name: str, path: Path, source: bytes) -> Module:
    """Return a module whose syntax is known.

    Raises:
        InputError: It is no Python.
    """
    module = Module(name, path, source)
    try:
        _ = module.tree
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path} is no Python: {error}") from error
    return module


def _dotted_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names in code, and attributes of names such as `zoo.PRoPE`."""
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts, node = [node.attr, *parts], node.value
        if isinstance(node, ast.Name):
            yield ".".join([node.id, *parts])


def _exports_lazily(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy_exports"


def _lazy_exports(call: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the place and the name of each export, see `zoo.lazy`."""
    for table in (node for node in ast.walk(call) if isinstance(node, ast.Dict)):
        for module, names in zip(table.keys, table.values, strict=True):
            if isinstance(module, ast.Constant) and isinstance(module.value, str):
                yield from ((f"{module.value}.{name}", name) for name in _texts(names))


def _texts(tree: ast.AST) -> Iterator[str]:
    return (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
