"""The documentation site: links and docstrings are checked, figures are drawn; nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("griffe", reason="pip install -e '.[docs]'")

import main
from docs import site

ROOT = Path(main.__file__).parent
ELSEWHERE = r"=[\"']?(?:https?:)?//"  # an address with a host
LOADED = re.compile(
    rf"<(?:script|img|iframe|source)[^>]*\ssrc{ELSEWHERE}|<link[^>]*\shref{ELSEWHERE}|url\([\"']?(?:https?:)?//|@import"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](../README.md#models)", "[a](index.md#models)"),
        ("[a](../timings/attention.md)", "[a](timings/attention.md)"),
        ("[a](../timings/)", "[a](timings/README.md)"),
        ("[a](positions.md)", "[a](positions.md)"),
        ("[a](../zoo/cameras/cameras.py)", "[a](reference/zoo/cameras/cameras.md)"),
        ("[a](../zoo/encodings/)", "[a](reference/zoo/encodings/index.md)"),
        ("[a](../configs/prope.yaml)", "[a](reference/configs.md#prope)"),
        ("[a](../Makefile)", "a"),
        ("[a](../examples/quickstart.ipynb)", "[a](examples/quickstart.md)"),
        ("[a](https://example.org)", "[a](https://example.org)"),
        ("![a](attention_bias.png)", "![a](attention_bias.png)"),
        ("[a](absent.md)", "[a](absent.md)"),  # mkdocs fails
    ],
)
def test_links_of_the_repository_become_links_of_the_site(text: str, expected: str) -> None:
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="questions.md"))
    assert site.on_page_markdown(text, page) == expected


def test_an_undocumented_public_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = 'class Base:\n    """Documented."""\n\n    def inherited(self):\n        """Documented."""\n\n\n'
    part = "class Part(Base):\n    def inherited(self): ...\n    def new(self): ...\n    def _private(self): ...\n\n\n"
    source = f'"""Documented."""\n\n\n{base}{part}def function(): ...\n'
    (tmp_path / "undocumented_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    found = list(site.undocumented("undocumented_module"))
    assert found == [f"undocumented_module.{name}" for name in ("Part", "Part.new", "function")]


def test_no_public_name_is_undocumented() -> None:
    assert not [name for module in site.modules() for name in site.undocumented(module)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, for pages to be broken in."""
    folder = tmp_path_factory.mktemp("repository")
    ignored = shutil.ignore_patterns(".*", "runs", "cache", "tests", "site", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=ignored, dirs_exist_ok=True)
    return folder


def build(repository: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_site_is_whole_and_loads_nothing_from_elsewhere(repository: Path) -> None:
    pytest.importorskip("material")
    built = build(repository)
    assert built.returncode == 0, built.stderr
    made = repository / "site"
    assert 'id="zoo.cameras.cameras.Cameras"' in (made / "reference/zoo/cameras/cameras.html").read_text()
    assert "--meters_per_unit" in (made / "reference/commands.html").read_text()
    files = [path for path in made.rglob("*") if path.suffix in (".html", ".css")]
    assert len(files) > 200 and not [path.name for path in files if LOADED.search(path.read_text())]
    for control in ('<script src="https://example.org/a.js">', '<link rel="a" href="//example.org/a.css">'):
        assert LOADED.search(control)


@pytest.mark.slow
def test_a_broken_link_and_an_undocumented_name_fail(repository: Path) -> None:
    pytest.importorskip("material")
    page, module = repository / "docs/concepts/cameras.md", repository / "zoo/errors.py"
    text, source = page.read_text(), module.read_text()
    page.write_text(f"{text}\n[nowhere](nowhere.md) and [no part](glossary.md#nothing)\n")
    module.write_text(f"{source}\n\ndef unexplained() -> None: ...\n")
    failed = build(repository)
    assert failed.returncode != 0
    assert "nowhere.md" in failed.stderr and "#nothing" in failed.stderr and "zoo.errors.unexplained" in failed.stderr
