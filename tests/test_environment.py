"""constraints.txt pins what pyproject.toml asks for, `make install` follows it, the Dockerfile makes real targets."""

from __future__ import annotations

import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import main

ROOT = Path(main.__file__).parent
PYPROJECT, PINS = (ROOT / "pyproject.toml").read_text(), (ROOT / "constraints.txt").read_text()
EXTRAS = ("dev", "docs", "qlora")  # what the Makefile installs, and what the tests need


def problems(pyproject: str, constraints: str) -> list[str]:
    """What is wrong with pins: absent, out of range, or of one build."""
    project = tomllib.loads(pyproject)["project"]
    asked = [*project["dependencies"], *(each for extra in EXTRAS for each in project["optional-dependencies"][extra])]
    lines = [line for line in constraints.splitlines() if not line.startswith("#")]
    found = [f"{line} is no pin" for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    for requirement in map(Requirement, asked):
        version = pins.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            found.append(f"{requirement}: {version}")
    return found


def test_the_pins_are_what_pyproject_asks_for() -> None:
    assert problems(PYPROJECT, PINS) == []


@pytest.mark.parametrize(
    ("pattern", "changed", "problem"),
    [
        (r"numpy==.*\n", "", "numpy>=2.0: None"),
        (r"(?<=\n)lightning==.*", "lightning==2.7.0", "lightning<2.7,>=2.6.4: 2.7.0"),
        (r"(?<=\n)torch==.*", r"\g<0>+cpu", r"torch==.*\+cpu is no pin"),
        (r"(?<=\n)av==.*", "-e .", "-e . is no pin"),
    ],
)
def test_an_absent_pin_one_out_of_range_and_one_of_a_build_are_found(pattern: str, changed: str, problem: str) -> None:
    damaged, count = re.subn(pattern, changed, PINS)
    found = problems(PYPROJECT, damaged)
    assert count == 1 and any(re.fullmatch(problem, each) for each in found), found


@pytest.mark.parametrize("target", ["install", "docs"])
@pytest.mark.parametrize(("options", "is_pinned"), [([], True), (["PINNED=0"], False)])
def test_make_installs_by_the_pins_unless_told_otherwise(target: str, options: list[str], is_pinned: bool) -> None:
    command = ["make", "--dry-run", "--always-make", target, *options]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    installs = [line for line in printed.splitlines() if "pip install" in line]
    assert installs and all(("--constraint constraints.txt" in line) == is_pinned for line in installs)


def test_new_pins_and_a_new_pyproject_install_again(tmp_path: Path) -> None:
    """The file that says what is installed is older than either of them."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/installed").touch()

    def installs(*options: str) -> bool:
        command = ["make", "--dry-run", "install", *options]
        return "pip install" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert not installs()
    assert installs("--what-if", "constraints.txt") and installs("--what-if", "pyproject.toml")
    assert not installs("--what-if", "constraints.txt", "PINNED=0")


def test_the_image_is_made_by_targets_of_the_makefile() -> None:
    """Without Docker: its instructions and targets exist, and it carries neither runs nor environments."""
    text = (ROOT / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    instructions = [line.partition(" ")[0] for line in lines]
    assert instructions[0] == "FROM" and {*instructions} <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}
    targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    made = re.findall(r'(?m)^(?:RUN make |CMD \["make", ")([\w-]+)', text)
    assert made == ["install", "gpu"] and targets.issuperset(made)
    left_out = [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().splitlines()]
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    assert ignored and [name for name in ignored if not any(fnmatch(name, each) for each in left_out)] == []
