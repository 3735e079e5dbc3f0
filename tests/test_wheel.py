"""The wheel works outside of the checkout: console script, configs, recipes, data files of the packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import main

ROOT = Path(main.__file__).parent
SHIPPED = ("zoo/", "datamodules/", "evaluation/", "run_folder/", "callbacks/", "commands/", "configs/", "recipes/")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("the list of files needs a git checkout")
    return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files: nothing that merely lies in the checkout gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def script(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of a new environment, which has this one's packages, but not this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "packages.pth").write_text(
        sysconfig.get_path("purelib")
    )  # its own .pth files, and so this checkout, stay out
    options = ["--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", *options, str(wheel)], check=True)
    return folder / "bin" / "spatial-vlm-zoo"


def printed_by(script: Path, folder: Path, *words: str, fails: bool = False) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([script, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert bool(done.returncode) == fails, done.stderr
    return done.stderr if fails else done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {name for name in tracked() if name.startswith(SHIPPED)}


@pytest.mark.slow
def test_the_installed_command_works_outside_of_the_checkout(script: Path, tmp_path: Path) -> None:
    where = [script.parent / "python", "-c", "import zoo; print(zoo.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(script.parents[1]))
    assert printed_by(script, tmp_path, "--version").startswith("spatial-vlm-zoo 0.")
    assert "fit             train" in printed_by(script, tmp_path, "--help")
    assert "--data.help" in printed_by(script, tmp_path, "predict", "--help")
    assert "camera" in printed_by(script, tmp_path, "check-encoding", "PRoPE")
    recipe = ("--config", "recipes/spatial_mllm_135k.yaml", "--print_config")
    assert "seconds_per_grid: 0.5" in printed_by(script, tmp_path, "fit", *recipe)
    assert "no config absent.yaml" in printed_by(script, tmp_path, "fit", "--config", "absent.yaml", fails=True)
    small = ["--trainer.max_steps", "1", "--data.source.scenes", "[2,1,1]", "--data.num_frames", "4"]
    printed_by(
        script, tmp_path, "fit", "--config", "prope.yaml", *small
    )  # its data files: furniture, templates, corpus
    assert (tmp_path / "runs").is_dir()
