"""VSI-Bench from a folder, and one question about one video."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from datamodules.sources.single import SingleVideo
from datamodules.sources.vsibench import VSIBench
from datamodules.video import Video

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
    assert len(source.missing) == 287 and sum(source.missing.values()) == 5130 - 37
    assert Video(scene.video).num_frames == 28
    assert scene.questions[0].question == "How many table(s) are in this room?"
    assert Counter(question.question_type for question in scene.questions)["room_size_estimation"] == 1
    assert source.scenes("val") == [scene]


@needs_realdata
def test_a_video_file_serves_as_well(root):
    (root / "arkitscenes" / SCENE).unlink()
    video = Path(str(REALDATA)) / "scenes/arkitscenes_47334096/47334096_28frames_1fps.mp4"
    (root / "arkitscenes" / f"{SCENE}.mp4").symlink_to(video)
    (scene,) = VSIBench(str(root)).scenes("test")
    assert Video(scene.video).num_frames == 28


@needs_realdata
def test_annotations_may_lie_elsewhere(root):
    (root / "test.jsonl").unlink()
    elsewhere = Path(str(REALDATA)) / "vsibench/arkitscenes_room_size.jsonl"
    source = VSIBench(str(root), annotations=str(elsewhere))
    assert [len(scene.questions) for scene in source.scenes("test")] == [1]
    assert sum(source.missing.values()) == 149


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
    source = SingleVideo(str(tmp_path / "clip.mp4"), "Left?", "object_rel_distance", ["A. yes", "B. no"])
    (scene,) = source.scenes("test")
    assert scene.cameras == tmp_path / "clip.cameras.json"
    assert scene.questions[0].options == ("A. yes", "B. no")


def test_a_single_video_that_is_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match="clip.mp4: no such video file or folder of frames"):
        SingleVideo(str(tmp_path / "clip.mp4"), "?").prepare()
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(FileNotFoundError, match="k.json: no such cameras file"):
        SingleVideo(str(tmp_path / "clip.mp4"), "?", cameras=str(tmp_path / "k.json")).prepare()
