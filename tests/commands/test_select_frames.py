"""python main.py select-frames: its files, resuming, and errors of scenes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from commands.select_frames import select_frames
from datamodules.samplers import SelectedFrames
from datamodules.video import Video
from tests.conftest import ROOMS
from zoo.errors import InputError


@pytest.fixture
def run(rooms_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Runs the command on the small rooms, in an empty folder; returns what it said."""
    monkeypatch.chdir(tmp_path)
    rooms = ["--data.source.scenes", str(list(ROOMS)), "--data.source.root", str(rooms_root), "--data.num_frames", "6"]

    def call(*words: str) -> str:
        select_frames([*rooms, *words])
        return capsys.readouterr().out

    return call


SPACE_AWARE = ("--data.sampler", "SpaceAwareSampler", "--data.sampler.geometry", "DatasetDepth")


def chosen(folder: str) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in Path(folder).glob("*/*/selected_frames.json")}


def test_one_file_per_scene_and_an_interrupted_command_resumes(run) -> None:
    printed = run(*SPACE_AWARE)
    folder = printed.rpartition("see ")[2].strip().rstrip("/")
    assert "on 3 scenes: 3 made, 0 kept; see selections/SpaceAwareSampler-6-" in printed
    first = chosen(folder)
    assert len(first) == 3 and all(len(each["selected_frames"]) == 6 for each in first.values())
    assert len(list(Path("cache/selections").iterdir())) == 3
    one, two, _ = sorted(Path(folder).glob("*/*/selected_frames.json"))
    one.unlink()
    two.write_text(two.read_text()[:30])  # cut short
    configs = ("--config", "prope.yaml", "--config", "data_rooms.yaml")  # the config of a run serves as well
    assert "2 made, 1 kept" in run(*configs, *SPACE_AWARE)
    assert chosen(folder) == first


def test_selections_of_other_settings_are_kept_apart(run, capsys: pytest.CaptureFixture) -> None:
    run(*SPACE_AWARE)
    (first,) = Path("selections").iterdir()
    before = chosen(str(first))
    other = ["--data.sampler.candidates", "12", "--data.frame_pairing", "Neighbor"]
    assert "3 made, 0 kept" in run(*SPACE_AWARE, *other)  # by default in a folder of their own
    for single in (other[:2], other[2:]):
        with pytest.raises(InputError, match="selected_frames.json: selected with other settings"):
            run(*SPACE_AWARE, *single, "--output", str(first))
    assert chosen(str(first)) == before and len(list(Path("selections").iterdir())) == 2
    (again,) = (folder for folder in Path("selections").iterdir() if folder != first)
    mixed, *others = sorted(again.glob("*/*"))
    shutil.copytree(first / mixed.relative_to(again), mixed, dirs_exist_ok=True)
    words = ["--data.sampler", "SelectedFrames", "--data.sampler.folder", str(again), "--output", "read"]
    with pytest.raises(InputError, match="2 of 3 scenes have no selection"):
        run(*words)
    assert capsys.readouterr().err.count(f"made with other settings than {mixed}") == 2


def test_selections_do_not_depend_on_workers(run) -> None:
    for output, workers in (("alone", "0"), ("together", "2")):
        words = ("--output", output, "--data.sampler.cache", "null", "--workers", workers)
        assert "3 made" in run(*SPACE_AWARE, *words)
    assert chosen("alone") == chosen("together")


def test_a_pairing_halves_the_views_and_the_frames_are_read_back(run, rooms_root: Path) -> None:
    paired = ("--data.sampler", "PoseFarthestSampler", "--data.frame_pairing", "Neighbor")
    run(*paired, "--output", "views", "--split", "val")
    views = chosen("views")
    assert len(views) == 2 and all(len(each["selected_frames"]) == 3 for each in views.values())
    name, content = next(iter(views.items()))
    (clip,) = rooms_root.rglob(f"rooms/{name}.mp4")  # not those of panels
    assert SelectedFrames("views").select(Video(clip), 3) == content["selected_frames"]


@pytest.mark.slow
def test_plots_are_drawn(run, sampler: str = "PosePlaneSampler") -> None:
    run("--data.sampler", sampler, "--output", sampler, "--plot", "true")
    sheets, paths = (sorted(Path(sampler).rglob(name)) for name in ("frames.jpg", "path.png"))
    assert len(sheets) == len(paths) == 3
    with Image.open(paths[0]) as image:
        colors = {color for _, color in image.getcolors(1 << 20)}
    assert len(colors) > 50
    paths[0].unlink()
    sheets[0].unlink()
    assert "0 made, 3 kept" in run("--data.sampler", sampler, "--output", sampler, "--plot", "true")
    assert paths[0].exists() and sheets[0].exists()


def test_failed_scenes_are_listed_and_skipped(run, capsys: pytest.CaptureFixture) -> None:
    run("--output", "some")
    next(Path("some").rglob("selected_frames.json")).unlink()
    with pytest.raises(InputError, match="1 of 3 scenes have no selection"):
        run("--data.sampler", "SelectedFrames", "--data.sampler.folder", "some", "--output", "again")
    said = capsys.readouterr()
    assert "2 made, 0 kept, 1 failed" in said.out and said.err.count("\n") == 1
    assert "selected_frames.json: can't be read" in said.err and len(chosen("again")) == 2


def test_missing_videos_are_listed(rooms_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (layout,) = (file.parent for file in rooms_root.rglob("test.jsonl") if (file.parent / "rooms").exists())
    shutil.copytree(layout, tmp_path / "rooms")
    first = sorted((tmp_path / "rooms").rglob("*.mp4"))[0]
    gone = [json.loads(line) for line in (tmp_path / "rooms/test.jsonl").read_text().splitlines()][0]
    (tmp_path / "rooms" / gone["dataset"] / f"{gone['scene_name']}.mp4").unlink()
    assert first.parent.name == gone["dataset"]
    words = ["--data.source", "SceneFolder", "--data.source.root", str(tmp_path / "rooms")]
    output = tmp_path / "views"
    select_frames([*words, "--data.num_frames", "6", "--output", str(output)])
    assert f"videos that are missing: 1, see {output / 'missing.txt'}" in capsys.readouterr().out
    assert (output / "missing.txt").read_text().splitlines()[1:] == [f"{gone['dataset']}/{gone['scene_name']}"]
    theirs = tmp_path / "theirs/missing.txt"
    theirs.parent.mkdir()
    theirs.write_text("my own notes")
    with pytest.raises(InputError, match="theirs is there already"):
        select_frames([*words, "--output", str(theirs.parent)])
    assert theirs.read_text() == "my own notes"
