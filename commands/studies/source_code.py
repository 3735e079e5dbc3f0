"""A digest of the code and configs that a training depends on."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from commands.configs import find_config, read_settings
from commands.defaults import default_configs
from zoo.files.fingerprint import fingerprint

ROOT = Path(__file__).parents[2]
# models, data and scores; the last file has the defaults of the trainer
SOURCES = ("zoo", "datamodules", "callbacks/metrics.py", "callbacks/scoring.py", "commands/cli.py")
DIGITS = 12
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_of(configs: Iterable[str], sources: str) -> str:
    """Return the digest of the code of a training.

    Args:
        configs: The configs that it names.
        sources: As `digest_sources` returns it.
    """
    paths = [find_config(name) for name in configs]
    contents = [read_settings(path) for path in (*default_configs(paths), *paths)]
    return fingerprint([sources, contents])[:DIGITS]


def digest_sources(root: Path = ROOT) -> str:
    """Return the digest of the files that training and scores depend on.

    Comments, docstrings and the layout of Python files have no effect.
    """
    total = bytearray()
    for source in SOURCES:
        path = root / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                content = _code(file.read_bytes()) if file.suffix == ".py" else file.read_bytes()
                total += f"{file.relative_to(root).as_posix()}/{len(content)};".encode() + content
    return fingerprint(bytes(total))


@cache  # a study digests the sources again after each training
def _code(source: bytes) -> bytes:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.unparse(tree).encode(errors="backslashreplace")
