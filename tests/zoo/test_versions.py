"""The version of the code beside a result: with the commit of a git clone, and whether it was changed."""

import subprocess
from pathlib import Path

import pytest

from zoo.versions import versions, zoo_version


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("zoo/model.py", "configs/prope.yaml", "tests/test_model.py", "studies/results/one.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "--message", "first")
    return tmp_path


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_clone_names_its_commit(clone: Path) -> None:
    version, _, commit = zoo_version(clone).partition("+g")
    assert version == versions()["zoo"].partition("+")[0]
    assert len(commit) == 12 and git(clone, "rev-parse", "HEAD").startswith(commit)


@pytest.mark.parametrize(
    "changed, is_dirty",
    [
        ("zoo/model.py", True),
        ("configs/prope.yaml", True),
        ("zoo/encodings/mine.py", True),  # not tracked yet
        ("studies/results/one.jsonl", False),  # a study writes it while it runs
        ("tests/test_model.py", False),
        ("scratch.py", False),
    ],
)
def test_changed_code_is_dirty(changed: str, is_dirty: bool, clone: Path) -> None:
    (clone / changed).parent.mkdir(exist_ok=True)
    (clone / changed).write_text("2\n")
    assert zoo_version(clone).endswith(".dirty") == is_dirty


def test_without_a_clone_of_its_own_there_is_no_commit(clone: Path, tmp_path_factory) -> None:
    assert "+" not in zoo_version(clone / "zoo")  # as a package that is installed within another project's clone
    empty = tmp_path_factory.mktemp("empty")
    git(empty, "init", "--quiet")
    assert "+" not in zoo_version(empty)  # no commit yet
