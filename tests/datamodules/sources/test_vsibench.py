"""VSI-Bench from a folder, and one question about one video."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from datamodules.datamodule import VideoQADataModule
from datamodules.scenes import Scene
from datamodules.sources import SingleVideo, VSIBench
from datamodules.video import Video
from tests.datamodules.sources.listing import totals

REALDATA = os.environ.get("ZOO_REALDATA")
needs_realdata = pytest.mark.skipif(not REALDATA, reason="ZOO_REALDATA is unset: no VSI-Bench questions")
SCENE = "47334096"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The layout of the benchmark with one of its scenes, by links to the real files."""
    real = Path(str(REALDATA))
    (tmp_path / "arkitscenes").mkdir()
    (tmp_path / "test.jsonl").symlink_to(real / "vsibench/test.jsonl")
    (tmp_path / "arkitscenes" / SCENE).symlink_to(real / "scenes/arkitscenes_47334096/frames")
    return tmp_path


@needs_realdata
def test_the_whole_benchmark_with_one_video(root):
    source = VSIBench(str(root))
    source.prepare()
    (scene,) = source.scenes("test")
    assert scene.name == f"arkitscenes/{SCENE}" and scene.cameras is None
    assert len(scene.questions) == 37
    assert len(source.missing) == 287 and sum(totals(source).values()) == 5130 - 37
    assert Video(scene.video).num_frames == 28
    assert scene.questions[0].question == "How many table(s) are in this room?"
    assert Counter(question.question_type for question in scene.questions)["room_size_estimation"] == 1
    assert source.scenes("val") == [scene]


@needs_realdata
def test_annotations_may_lie_elsewhere(root):
    (root / "test.jsonl").unlink()
    elsewhere = Path(str(REALDATA)) / "vsibench/arkitscenes_room_size.jsonl"
    source = VSIBench(str(root), annotations=str(elsewhere))
    assert [len(scene.questions) for scene in source.scenes("test")] == [1]
    assert sum(totals(source).values()) == 149


def whole(folder: Path) -> Path:
    """The real questions with a place for each of their 288 videos."""
    (folder / "test.jsonl").symlink_to(Path(str(REALDATA)) / "vsibench/test.jsonl")
    for row in map(json.loads, (folder / "test.jsonl").open()):
        video = folder / row["dataset"] / f"{row['scene_name']}.mp4"
        video.parent.mkdir(exist_ok=True)
        video.touch()
    return folder


@needs_realdata
def test_room_size_on_all_of_arkitscenes_is_150_questions(tmp_path):
    """`--data.datasets [arkitscenes] --data.question_types [room_size_estimation]`."""
    source = VSIBench(str(whole(tmp_path)))
    everything = VideoQADataModule(source).scenes("test")
    assert (len(everything), sum(len(scene.questions) for scene in everything)) == (288, 5130)
    data = VideoQADataModule(source, datasets=["arkitscenes"], question_types=["room_size_estimation"])
    scenes = data.scenes("test")
    assert len(scenes) == sum(len(scene.questions) for scene in scenes) == 150 and data.missing == {}
    assert all(scene.name.startswith("arkitscenes/") for scene in scenes)
    listed = Path(str(REALDATA)) / "vsibench/arkitscenes_room_size.jsonl"
    assert {scene.questions[0].id for scene in scenes} == {str(json.loads(line)["id"]) for line in listed.open()}


ROWS = [
    {
        "id": i,
        "dataset": "scannet",
        "scene_name": f"scene{i // 2}",
        "question_type": "object_rel_direction_easy" if i % 2 else "object_counting",
        "question": f"Question {i}?",
        "ground_truth": "A" if i % 2 else "4",
        "options": ["A. left", "B. right"] if i % 2 else None,
    }
    for i in range(6)
]
PRUNED = ("1", "4", "5")


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    """The hub's data set in small: the questions as jsonl, the ids that debiasing pruned, three videos."""
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "pruned_ids.txt").write_text("\n".join(PRUNED) + "\n")
    (tmp_path / "scannet").mkdir()
    for i in range(3):
        (tmp_path / f"scannet/scene{i}.mp4").touch()
    return tmp_path


def ids(scenes: list[Scene]) -> list[str]:
    return [question.id for scene in scenes for question in scene.questions]


def test_a_relative_root(generated, monkeypatch):
    monkeypatch.chdir(generated.parent)
    assert ids(VSIBench(generated.name, debiased=True).scenes("test")) == ["0", "2", "3"]


def test_the_debiased_split(generated):
    assert ids(VSIBench(str(generated)).scenes("test")) == ["0", "1", "2", "3", "4", "5"]
    scenes = VSIBench(str(generated), debiased=True).scenes("test")
    assert ids(scenes) == ["0", "2", "3"]
    assert [scene.name for scene in scenes] == ["scannet/scene0", "scannet/scene1"]  # none is left of the third
    (generated / "pruned_ids.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"pruned_ids\.txt is absent: download the dataset"):
        VSIBench(str(generated), debiased=True).prepare()


def test_parquet_holds_the_same_questions(generated):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: no parquet")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([row | {"pruned": str(row["id"]) in PRUNED} for row in ROWS])
    parquet.write_table(table, generated / "test-00000-of-00001.parquet")
    parquet.write_table(table.filter([str(row["id"]) not in PRUNED for row in ROWS]), generated / "debiased.parquet")
    asked = VSIBench(str(generated)).scenes("test")
    assert VSIBench(str(generated), annotations="test-00000-of-00001.parquet").scenes("test") == asked
    debiased = VSIBench(str(generated), annotations="debiased.parquet").scenes("test")
    assert debiased == VSIBench(str(generated), debiased=True).scenes("test") != asked

    (generated / "cut.parquet").write_bytes((generated / "debiased.parquet").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cut\.parquet: not a parquet file, or truncated") as error:
        VSIBench(str(generated), annotations="cut.parquet").scenes("test")
    assert "\n" not in str(error.value)
    parquet.write_table(pyarrow.Table.from_pylist([ROWS[0], ROWS[0]]), generated / "twice.parquet")
    with pytest.raises(ValueError, match=r"twice\.parquet:2: id 0 repeats line 1"):
        VSIBench(str(generated), annotations="twice.parquet").scenes("test")


def test_absent_data_says_what_to_download_and_where_to_put_it(tmp_path):
    for act in (VSIBench.prepare, lambda source: source.scenes("test")):
        with pytest.raises(FileNotFoundError) as error:
            act(VSIBench(str(tmp_path)))
        message = str(error.value)
        assert "nyu-visionx/VSI-Bench" in message and str(tmp_path / "test.jsonl") in message
        assert "\n" not in message


def test_there_is_no_training_split(tmp_path):
    with pytest.raises(ValueError, match="no training split: train on another source"):
        VSIBench(str(tmp_path)).scenes("train")


def test_a_single_video(tmp_path):
    (tmp_path / "clip.mp4").touch()
    (scene,) = SingleVideo(str(tmp_path / "clip.mp4"), "What is the size of this room?").scenes("test")
    assert (scene.name, scene.video, scene.cameras) == ("clip", tmp_path / "clip.mp4", None)
    assert scene.questions[0].question_type == "" and scene.questions[0].options == ()

    (tmp_path / "clip.cameras.json").write_text(json.dumps({}))
    (scene,) = SingleVideo(str(tmp_path / "clip.mp4"), "Left?").scenes("test")
    assert scene.cameras == tmp_path / "clip.cameras.json"


def test_a_single_video_that_is_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match="clip.mp4: no such video file or folder of frames"):
        SingleVideo(str(tmp_path / "clip.mp4"), "?").prepare()
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(FileNotFoundError, match="k.json: no such cameras file"):
        SingleVideo(str(tmp_path / "clip.mp4"), "?", cameras=str(tmp_path / "k.json")).prepare()


@needs_realdata
def test_missing_questions_are_those_that_would_be_asked(root, caplog):
    data = VideoQADataModule(
        VSIBench(str(root)), datasets=["arkitscenes", "scanet"], question_types=["room_size_estimation"]
    )
    with caplog.at_level("INFO"):
        assert sum(len(scene.questions) for scene in data.scenes("test")) == 1
    assert len(data.missing) == sum(data.missing.values()) == 149
    assert "test: no scene meets --data.datasets scanet" in caplog.text
    only = VideoQADataModule(VSIBench(str(root)), scene_names=[SCENE, "nosuch", f"arkitscenes/{SCENE}"])
    with caplog.at_level("INFO"):
        only.scenes("test")
    assert caplog.text.rstrip().endswith("test: no scene meets --data.scene_names nosuch")
