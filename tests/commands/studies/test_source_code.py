"""The digest of the code changes with what it does, not with how it is written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.studies.source_code import SOURCES, code_of, digest_sources

CODE = '''"""A module."""

RATE = 1  # per step


class A:
    """A class."""

    def f(self):
        return "text"
'''


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in SOURCES:
        path = tmp_path / name if name.endswith(".py") else tmp_path / name / "module.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CODE)
    (tmp_path / "zoo/prompt.txt").write_text("Hello.")
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("A module.", "The module.", False),
        ("A class.", "The class.", False),
        ("  # per step", "", False),
        ("\n\n\nclass", "\n\nclass", False),
        ("RATE = 1", "RATE = 2", True),
        ('"text"', '"other text"', True),
        ("def f", "def g", True),
    ],
)
def test_comments_and_layout_have_no_effect(old: str, new: str, changes: bool, root: Path) -> None:
    before = digest_sources(root)
    assert old in CODE
    (root / "callbacks/scoring.py").write_text(CODE.replace(old, new))
    assert (digest_sources(root) != before) == changes


def test_other_files_count_and_caches_do_not(root: Path) -> None:
    before = digest_sources(root)
    (root / "zoo/__pycache__").mkdir()
    (root / "zoo/__pycache__/module.pyc").touch()
    (root / "commands/report.py").write_text("pass")  # of the commands only the defaults of the trainer count
    (root / "callbacks/table.py").write_text("pass")
    assert digest_sources(root) == before
    (root / "zoo/prompt.txt").write_text("Good day.")
    assert digest_sources(root) != before


def test_configs_count_by_content(tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    digests = []
    for text in ("trainer: {max_steps: 3}", "# A comment.\ntrainer:\n  max_steps: 3\n", "trainer: {max_steps: 4}"):
        config.write_text(text)
        digests.append(code_of([str(config)], "sources"))
    assert digests[0] == digests[1] != digests[2] and code_of([str(config)], "others") != digests[2]
