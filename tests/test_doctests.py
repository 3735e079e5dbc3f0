"""Runs the examples in the docstrings of `zoo`."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import zoo

ROOT = Path(zoo.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples(path: Path) -> None:
    """Parsed from the source: doctest's own search skips functions that the shape checks of the tests wrap."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    namespace = vars(importlib.import_module(".".join(parts).removesuffix(".__init__")))
    runner, parser = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), doctest.DocTestParser()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, documented) and ">>> " in (text := ast.get_docstring(node) or ""):
            name = getattr(node, "name", path.stem)
            runner.run(parser.get_doctest(text, dict(namespace), name, str(path), getattr(node, "lineno", 1)))
    assert runner.tries > 0 and runner.failures == 0


def test_a_wrong_example_fails() -> None:
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(example, out=lambda text: None).failed == 1
