"""Versions of the code that computes a result. They are recorded with it."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
# folders that a result depends on
CODE = ("zoo", "datamodules", "evaluation", "run_folder", "callbacks", "commands", "configs")
PACKAGES = ("torch", "transformers", "lightning", "torchvision", "av")  # the last two resize and decode frames


@cache
def versions() -> dict[str, str]:
    """Return the version of this package, see `zoo_version`, and of the packages that compute answers."""
    return {"zoo": zoo_version(), **package_versions()}


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that compute answers."""
    return {name: _version(name) for name in PACKAGES}


def zoo_version(root: Path = ROOT) -> str:
    """Return the version of this package. In a git clone it includes the commit, as setuptools-scm writes it.

    Args:
        root: The folder of the code.

    Returns:
        A version such as `0.1.0+g69d7b8c16e2f`, or `0.1.0+g69d7b8c16e2f.dirty` if code or configs were changed since.
    """
    version = _version("spatial-vlm-zoo")
    commit, is_clean = git_state(root)
    return version if commit is None else f"{version}+g{commit[:12]}{'' if is_clean else '.dirty'}"


def git_state(root: Path = ROOT) -> tuple[str | None, bool | None]:
    """Return the commit of a git clone, and whether code and configs are unchanged. None where unknown."""
    if not (root / ".git").exists():  # an installed package may be inside another project's clone
        return None, None
    try:
        return _git(root, "rev-parse", "HEAD"), not _git(root, "status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):  # no git, no commit yet, or another user's clone
        return None, None


def _git(root: Path, *words: str) -> str:
    # otherwise `status` would lock the index, and a simultaneous commit would fail
    words = ("--no-optional-locks", *words)
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def _version(package: str) -> str:
    found = list(distributions(name=package))
    return found[0].version if found else "not installed"
