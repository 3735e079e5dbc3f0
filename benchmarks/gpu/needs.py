"""The packages that the benchmarks need, and the wheels to carry to a machine without a network.

Only the standard library is imported here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

ROOT = Path(__file__).parents[2]
ON_THE_MACHINE = ("torch", "torchvision", "triton", "numpy", "nvidia-", "cuda-")  # its own builds are taken
WHEELS, SITE = ROOT / "wheels", ROOT / "wheels" / "site"


def missing() -> list[str]:
    """Requirements of pyproject.toml that this Python does not meet, each with what it has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for requirement in project["dependencies"]:
        name, least = _parts(requirement)
        try:
            has = version(name)
        except PackageNotFoundError:
            found.append(f"{name}>={least}, not installed")
            continue
        if _numbers(has) < _numbers(least):
            found.append(f"{name}>={least}, has {has}")
    return found


def wheels() -> list[str]:
    """What the project needs in this environment, with versions, without what a GPU machine has itself."""
    found: dict[str, str] = {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [_parts(requirement)[0] for requirement in project["dependencies"]] + ["pytest"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found or name.startswith(ON_THE_MACHINE):
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # of another platform
            continue
        waiting += [_parts(each)[0] for each in requires(name) or () if "extra ==" not in each]
    return [f"{name}=={number}" for name, number in sorted(found.items())]


def download(python: str) -> str:
    """The command that fetches the wheels, where there is a network and this project is installed."""
    where = f"--python-version {python} --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64"
    return f"python -m pip download --no-deps --only-binary=:all: {where} -d wheels {' '.join(wheels())}"


def install_carried() -> None:
    """Unpacks the carried wheels into a folder of their own; the machine's environment stays as it is."""
    if not SITE.exists() and (files := sorted(map(str, WHEELS.glob("*.whl")))):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(SITE)]
        subprocess.run([*command, *files], check=True)
    if SITE.exists():
        sys.path.insert(0, str(SITE))


def _parts(requirement: str) -> tuple[str, str]:
    match = re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*(?:\(?[^>;]*>=\s*([\d.]+))?", requirement)
    assert match is not None
    return match[1], match[2] or "0"


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in re.findall(r"\d+", text)[:3])
