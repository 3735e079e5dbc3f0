"""What surrounds the code: CI runs make targets, one version everywhere, and links between documents lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import main

ROOT = Path(main.__file__).parent
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(
        path
        for folder in ("docs", "benchmarks", "studies", "recipes", ".github")
        for path in (ROOT / folder).rglob("*.md")
    ),
]


def test_ci_runs_targets_of_the_makefile() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    run = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    matrix = {f"make {row['target']}" for row in jobs["tests"]["strategy"]["matrix"]["include"]}
    named = {words.removeprefix("make ") for words in (run - {"make ${{ matrix.target }}"}) | matrix}
    assert {"lint", "tests", "docs"} <= named <= targets
    assert "make test\n" in (ROOT / ".ci/run").read_text() and "\ntest: lint tests" in (ROOT / "Makefile").read_text()


def test_hooks_before_a_commit_are_those_of_lint() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    recipe = (ROOT / "Makefile").read_text()
    for hook in repository["hooks"]:
        tool = hook["entry"].partition(" --")[0]
        assert f"\t{tool}" in recipe, tool


def test_one_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert re.findall(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


def broken_links(document: Path, text: str) -> list[str]:
    return [link for link in LINK.findall(text) if not (document.parent / link).exists()]


def test_links_between_documents_lead_somewhere() -> None:
    assert len(DOCUMENTS) > 15
    assert not {path.name: broken for path in DOCUMENTS if (broken := broken_links(path, path.read_text()))}
    assert broken_links(ROOT / "README.md", "[a](docs/absent.md) [b](LICENSE)") == ["docs/absent.md"]  # the control


HANGS = """
import ctypes, multiprocessing, time

def test_waits_in_c():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex), libc.pthread_mutex_lock(mutex)

def test_waits_for_a_forked_process_that_hangs():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
    process.start()
    process.join()

def test_catches_everything():
    try:
        time.sleep(1000)
    except BaseException:
        time.sleep(1000)

def test_passes():
    pass
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_test_that_hangs_ends_and_the_others_run(tmp_path: Path) -> None:
    """As `make tests` runs them; the file that a forked process would hold open is the output."""
    (tmp_path / "test_hangs.py").write_text(HANGS)
    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", "-p", "no:cacheprovider", "-o", "timeout=30"]
    command = [sys.executable, "-m", "pytest", *options, "-n", "2", "--dist", "worksteal", str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800).stdout
    assert "3 failed, 1 passed" in found and found.count("crashed while running") >= 3, found
