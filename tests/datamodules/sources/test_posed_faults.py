"""Posed scenes with something wrong are named, and the rest goes on; what was made is not made again."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.sources.posed import PosedScenes
from datamodules.trajectories import ARKitScenes, Nerfstudio, ScanNet
from tests.datamodules.sources.kitchen import ID, arkit, ask, cameras_of, posed
from tests.datamodules.sources.listing import totals


def broken(folder: Path, spoil: str) -> None:
    """A tiny ScanNet scene with something wrong."""
    for name in ("color", "pose", "intrinsic", "depth"):
        (folder / name).mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(folder / f"color/{number}.png")
        pose = np.eye(4)
        if spoil == "nan" or (spoil == "some nan" and number == 1):
            pose[0, 3] = np.nan
        if spoil == "stretched":
            pose[:3, :3] *= 1.5
        if not (spoil == "fewer poses" and number == 2):
            np.savetxt(folder / f"pose/{number}.txt", pose)
    if spoil != "no intrinsics":
        K = np.diag([np.nan if spoil == "no focal length" else 8.0, 8, 1, 1])
        K[:2, 2] = (648, 484) if spoil == "other size" else (4, 3)
        np.savetxt(folder / "intrinsic/intrinsic_color.txt", K)


REASONS = {
    "nan": "no frame has a pose that is finite",
    "other size": "its intrinsics don't fit images of 8 x 6: focal length and principal point 8, 8, 648, 484",
    "no focal length": "its intrinsics don't fit images",
    "stretched": "frame 0: the rotation is off orthonormal",
    "no intrinsics": "intrinsic_color.txt",
}


def test_a_broken_scene_is_named_and_counted_and_the_rest_goes_on(tmp_path, capsys):
    spoilt = [*REASONS, "some nan", "fewer poses", "fine"]
    for spoil in spoilt:
        broken(tmp_path / "raw" / spoil, spoil)
    ask(tmp_path / "raw", *spoilt, "absent")
    source = posed(tmp_path, ScanNet())
    source.prepare()
    said = capsys.readouterr().err
    for spoil, reason in REASONS.items():
        (line,) = (line for line in said.splitlines() if line.startswith(f"raw/{spoil}: skipped"))
        assert reason in line
    scenes = source.scenes("test")
    assert totals(source) == {f"raw/{name}": 1 for name in (*REASONS, "absent")}
    assert "raw/some nan: 1 of 3 frames have no pose and are excluded" in said and "raw/fine" not in said
    frames = {scene.name: cameras_of(scene)[0].num_frames for scene in scenes}
    assert frames == {"raw/some nan": 2, "raw/fewer poses": 2, "raw/fine": 3}


def test_a_scene_with_some_of_its_depth_says_that_it_goes_without(tmp_path, capsys):
    for name, count in (("all", 3), ("some", 2), ("none", 0)):
        broken(tmp_path / "raw" / name, "fine")
        shutil.rmtree(tmp_path / "raw" / name / "depth")
        (tmp_path / "raw" / name / "depth").mkdir()
        for i in range(count):
            Image.fromarray(np.full((6, 8), 900, np.uint16)).save(tmp_path / f"raw/{name}/depth/{i}.png")
    ask(tmp_path / "raw", "all", "some", "none")
    source = posed(tmp_path, ScanNet())
    source.prepare()
    said = capsys.readouterr().err
    assert "some/depth/2.png: absent, as are 1 of 3 depth images" in said and said.count("absent") == 1
    assert [scene.depth is not None for scene in source.scenes("test")] == [True, False, False]


def test_depth_that_is_gone_leaves_nothing_behind(tmp_path):
    broken(tmp_path / "raw/a", "fine")
    for i in range(3):
        Image.fromarray(np.full((6, 8), 900, np.uint16)).save(tmp_path / f"raw/a/depth/{i}.png")
    ask(tmp_path / "raw", "a")
    source = posed(tmp_path, ScanNet())
    source.prepare()
    assert source.scenes("test")[0].depth is not None
    shutil.rmtree(tmp_path / "raw/a/depth")
    source.prepare()
    assert source.scenes("test")[0].depth is None and not list(source.folder.rglob("*.depth"))


def test_photographs_on_their_side_are_refused(tmp_path, capsys):
    broken(tmp_path / "raw/a", "fine")
    ask(tmp_path / "raw", "a")
    (tmp_path / "raw/a/color/1.png").unlink()
    picture, exif = tmp_path / "raw/a/color/1.jpg", Image.Exif()
    exif[0x0112] = 3  # upside down: the size is that of the cameras
    Image.new("RGB", (8, 6)).save(picture, exif=exif)
    source = posed(tmp_path, ScanNet())
    source.prepare()
    assert f"raw/a: skipped, its cameras can't be read: {picture} is stored on its side" in capsys.readouterr().err
    assert totals(source) == {} and source.scenes("test") == [] and totals(source) == {"raw/a": 1}


def two_scenes(tmp_path: Path) -> tuple[PosedScenes, Path, Path]:
    """Sound ones, with their cameras made; the files of both."""
    broken(tmp_path / "raw/a", "fine")
    broken(tmp_path / "raw/b", "fine")
    ask(tmp_path / "raw", "a", "b")
    source = posed(tmp_path, ScanNet())
    source.prepare()
    a, b = (scene.cameras for scene in source.scenes("test"))
    assert a is not None and b is not None
    return source, a, b


def test_what_was_made_is_not_made_again_and_what_is_gone_is(tmp_path, capsys):
    source, a, b = two_scenes(tmp_path)
    whole, made = b.read_bytes(), a.stat().st_mtime_ns
    b.unlink()
    again = posed(tmp_path, ScanNet())
    assert [scene.name for scene in again.scenes("test")] == ["raw/a"] and totals(again) == {"raw/b": 1}
    again.prepare()
    assert b.read_bytes() == whole and a.stat().st_mtime_ns == made
    assert len(again.scenes("test")) == 2 and again.missing == {}

    other = posed(tmp_path, Nerfstudio())  # other settings, another folder
    assert other.folder != source.folder
    other.prepare()
    assert "transforms.json" in capsys.readouterr().err
    assert other.scenes("test") == [] and sum(totals(other).values()) == 2


def test_raw_files_that_changed_are_read_anew(tmp_path):
    source, a, b = two_scenes(tmp_path)
    before, made = a.read_bytes(), b.stat().st_mtime_ns
    pose = np.eye(4)
    pose[0, 3] = 7
    np.savetxt(tmp_path / "raw/a/pose/1.txt", pose)
    source.prepare()
    assert a.read_bytes() != before and b.stat().st_mtime_ns == made
    (tmp_path / "raw/a/intrinsic/intrinsic_color.txt").unlink()  # what can't be read any more is not there
    source.prepare()
    assert [scene.name for scene in source.scenes("test")] == ["raw/b"]


@pytest.mark.parametrize("content", ['{"frames": [5]}', '{"frames": null}', "[]", '{"w": Infinity, "frames": []}'])
def test_a_file_of_another_kind_costs_its_scene_alone(content, tmp_path, capsys):
    (tmp_path / "raw/a").mkdir(parents=True)
    (tmp_path / "raw/a/transforms.json").write_text(content)
    ask(tmp_path / "raw", "a")
    source = posed(tmp_path, Nerfstudio())
    source.prepare()
    assert "raw/a: skipped, its cameras can't be read: " in capsys.readouterr().err
    assert source.scenes("test") == [] and totals(source) == {"raw/a": 1}


def test_no_name_leaves_the_cache(tmp_path):
    source, _, _ = two_scenes(tmp_path)
    victim = source.folder.parent / "mine.cameras.json"  # `raw/../../mine` of the cache
    victim.write_text("a user's own file}")
    broken(tmp_path / "mine", "fine")
    ask(tmp_path / "raw", "a", "../../mine")
    with pytest.raises(ValueError, match=r"test.jsonl:2: raw/../../mine leaves its folder"):
        source.prepare()
    assert victim.read_text() == "a user's own file}"


def test_two_at_once_make_it_once(tmp_path, monkeypatch, capsys):
    for name in ("a", "b", "c"):
        broken(tmp_path / "raw" / name, "fine")
    ask(tmp_path / "raw", "a", "b", "c")
    made: list[str] = []
    real = PosedScenes._make

    def make(self: PosedScenes, name: str) -> None:
        made.append(name)
        time.sleep(0.1)
        real(self, name)

    monkeypatch.setattr(PosedScenes, "_make", make)
    several = [posed(tmp_path, ScanNet()) for _ in range(2)]
    threads = [threading.Thread(target=source.prepare) for source in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == ["raw/a", "raw/b", "raw/c"]
    assert "another process reads these poses: waiting for it" in capsys.readouterr().err
    assert [len(source.scenes("test")) for source in several] == [3, 3]


def test_a_video_that_does_not_fit_is_named(tmp_path, capsys, kitchen):
    arkit(kitchen, tmp_path / "raw" / ID)
    ask(tmp_path / "raw", ID)
    source = posed(tmp_path, ARKitScenes(), videos=str(tmp_path / "videos"))
    source.prepare()
    assert source.scenes("test") == [] and totals(source) == {f"raw/{ID}": 1}  # no video at all

    (tmp_path / f"videos/raw/{ID}").mkdir(parents=True)
    Image.new("RGB", (480, 640)).save(tmp_path / f"videos/raw/{ID}/0.png")
    source.prepare()
    assert "480 x 640 pixels, the cameras are for 640 x 480" in capsys.readouterr().err
    assert source.scenes("test") == []


def test_a_split_without_questions_says_where_they_belong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val\.jsonl is absent: it holds one question per line"):
        posed(tmp_path, ScanNet()).scenes("val")
