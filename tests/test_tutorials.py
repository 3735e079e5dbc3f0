"""The tutorials: their files and commands are run as they stand on the page."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import main
from datamodules.trajectories.base import upright_turns
from tests.commands.test_import_dataset import LAYOUTS
from tests.datamodules.clips import numbered_frame, write_video
from tests.datamodules.trajectories.captures import NAMES, colmap, walk
from tests.test_scores import commands_with_a_users_score
from tests.zoo.encodings.test_properties import holds
from zoo.encodings import CameraEncoding
from zoo.encodings.testing import HEAD, PROPERTIES
from zoo.geometry import GeometryEncoder

ROOT = Path(main.__file__).parent
TUTORIALS = ROOT / "docs" / "tutorials"
TINY = "--trainer.max_steps 1 --data.source.scenes [6,2,3] --data.num_frames 4 --data.batch_size 2"
Run = Callable[[str], str]


def write_files(page: str, folder: Path) -> list[str]:
    """Writes the files of a page; returns its commands of this project."""
    text = (TUTORIALS / page).read_text(encoding="utf-8")
    for name, content in re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(content, encoding="utf-8")
    shell = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    return [line.removeprefix("python main.py ") for line in shell.splitlines() if line.startswith("python main.py")]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Runs a command in an empty folder, whose modules Python finds; returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def call(words: str) -> str:
        monkeypatch.delenv("ZOO_RUN", raising=False)
        monkeypatch.setattr(sys, "argv", ["main.py", *shlex.split(words, comments=True)])
        with suppress(SystemExit) if words.endswith("--print_config") else nullcontext():
            main.main()
        return capsys.readouterr().out

    return call


def load(file: Path) -> object:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_encoding_of_the_tutorial_has_its_symmetries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files("add_an_encoding.md", tmp_path)
    encoding = load(tmp_path / "my_encoding.py").InfiniteHomography  # type: ignore[attr-defined]

    class Undeclared(encoding):  # type: ignore[misc, valid-type]
        symmetries = super(encoding, encoding).symmetries

    class Transposed(encoding):  # type: ignore[misc, valid-type]
        def matrices(self, cameras):
            return {**super().matrices(cameras), "q": super().matrices(cameras)["o"]}

    def measured(kind: type[CameraEncoding]) -> list[str]:
        """The symmetries that are not as the encoding declares them."""
        declared = asdict(kind().symmetries)
        found = {each.__name__: holds(each.__name__, each(kind(), HEAD)) for each in PROPERTIES}
        return [name for name, value in found.items() if value != declared[name]]

    assert measured(encoding) == []
    assert measured(Undeclared) == ["scale"]  # the negative controls are those that the page names
    assert "canonical" in measured(Transposed) or "world_views" in measured(Transposed)


@pytest.mark.parametrize(
    ("page", "file", "name"),
    [
        ("add_an_encoding.md", "my_encoding.py", "InfiniteHomography"),
        ("add_a_geometry_encoder.md", "my_geometry.py", "CameraPositions"),
    ],
)
def test_a_part_of_ones_own_is_built(page: str, file: str, name: str, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    assert isinstance(getattr(load(tmp_path / file), name)(), CameraEncoding | GeometryEncoder)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["add_an_encoding.md", "add_a_geometry_encoder.md"])
def test_a_part_of_ones_own_trains_and_is_tested(page: str, tmp_path: Path, rooms_root: Path, run: Run) -> None:
    commands = write_files(page, tmp_path)
    checks = ["check-encoding"] if page == "add_an_encoding.md" else []
    assert [words.split()[0] for words in commands] == [*checks, "fit", "test", "test"]
    for words in commands:
        run(f"{words} {TINY} --data.source.root {rooms_root}" if words.startswith("fit") else words)
    assert len(list(tmp_path.glob("runs/*/**/metrics.json"))) == 2


@pytest.mark.slow
def test_your_own_videos(tmp_path: Path, run: Run) -> None:
    commands = write_files("your_own_videos.md", tmp_path)
    colmap(tmp_path / "captures/kitchen", walk())
    for dataset, (write, scene, _) in LAYOUTS.items():  # a raw scene of each dataset, and a video of it
        write(raw := tmp_path / "raw" / dataset / scene, walk())
        is_turned = dataset == "arkitscenes" and upright_turns(torch.from_numpy(walk().world_to_camera())) % 2
        (tmp_path / "data/videos").mkdir(parents=True, exist_ok=True)
        frames = [numbered_frame(i, *((64, 48) if is_turned else (48, 64))) for i in range(len(NAMES))]
        write_video(tmp_path / f"data/videos/{raw.name}.mp4", frames)
    (tmp_path / "clip.mp4").symlink_to(tmp_path / "captures/kitchen/images")  # a folder of photographs
    for words in commands:
        words = words.partition(" #")[0]
        run(words + (f" {TINY}" if words.startswith("fit ") else ""))
    answers = [
        json.loads(line) for file in tmp_path.glob("runs/*/answers.jsonl") for line in file.read_text().splitlines()
    ]
    assert len(list(tmp_path.glob("data/cameras/*/*.cameras.json"))) == len(LAYOUTS)
    assert len(answers) == 2 and (tmp_path / "data/mine/homes/kitchen.path.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("words", commands_with_a_users_score())
def test_reproduce_0532_names_options_that_exist(words: str, run: Run) -> None:
    printed = run(f"{words} --print_config")
    assert "repetition_penalty: 1.05" in printed and "- room_size_estimation" in printed


@pytest.mark.slow
def test_the_study_can_be_run(tmp_path: Path, run: Run) -> None:
    listed, trained, submitted = write_files("study_on_slurm.md", tmp_path)
    assert len(re.findall(r"main.py fit", run(listed))) == 9
    run(f"{trained} --dry_run")
    assert "9 of 9 trainings" in run(f"{submitted} --dry_run")
