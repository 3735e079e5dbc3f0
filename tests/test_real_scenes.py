"""The whole `test` command on real questions and real frames, where ZOO_REALDATA has them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from datamodules.cameras_file import write_cameras
from zoo.cameras.poses import invert_se3


@pytest.fixture
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `main.py test` in an empty folder on a random tiny model; returns metrics.json and the predictions."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[dict, list[dict]]:
        monkeypatch.delenv("ZOO_RUN", raising=False)
        fixed = ["--model.allow_untrained", "true", "--data.num_frames", "4", "--trainer.default_root_dir", "run"]
        monkeypatch.setattr(sys, "argv", ["main.py", "test", *words, *fixed])
        main.main()
        lines = Path("run/predictions.jsonl").read_text().splitlines()
        return json.loads(Path("run/metrics.json").read_text()), [json.loads(line) for line in lines]

    return call


@pytest.mark.slow
def test_vsibench_with_one_scene_of_its_288(realdata: Path, tmp_path: Path, test_command) -> None:
    root = tmp_path / "vsibench"
    (root / "arkitscenes").mkdir(parents=True)
    (root / "test.jsonl").symlink_to(realdata / "vsibench/test.jsonl")
    scene = realdata / "scenes/arkitscenes_47334096"
    (root / "arkitscenes/47334096.mp4").symlink_to(scene / "47334096_28frames_1fps.mp4")
    metrics, lines = test_command(
        *("--config", "qwen25_vl.yaml", "--config", "data_vsibench.yaml", "--data.source.root", str(root)),
        *("--model.max_new_tokens", "1"),
    )
    assert len(lines) == metrics["counts"]["questions"] == 37
    assert metrics["counts"]["missing"] == 5130 - 37 and len(metrics["missing_scenes"]) == 287
    assert {line["scene"] for line in lines} == {"arkitscenes/47334096"}
    assert lines[0]["frames"] == [0, 9, 18, 27]
    counts = {kind: entry["count"] for kind, entry in metrics["per_question_type"].items() if entry["count"]}
    assert counts["room_size_estimation"] == 1 and sum(counts.values()) == 37


def red_kitchen(realdata: Path, root: Path, name: str = "redkitchen", spoil=lambda poses: poses) -> Path:
    """7-Scenes RedKitchen in a folder of scenes: its video, its real cameras, two questions."""
    source, folder = realdata / "scenes/7scenes_redkitchen", root / "sevenscenes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.mp4").symlink_to(source / "video_320x240_30fps.mp4")
    rows = torch.from_numpy(np.loadtxt(source / "poses_c2w.txt"))
    poses = rows[:, 1:].reshape(-1, 4, 4)
    K_px = torch.from_numpy(np.loadtxt(source / "camera-intrinsics.txt"))
    K_px[:2] /= 2  # the video has half the size
    write_cameras(folder / f"{name}.cameras.json", spoil(invert_se3(poses)), K_px, width=320, height=240)
    asked = [
        ("room_size_estimation", "What is the size of this room (in square meters)?", "12.0"),
        ("object_counting", "How many chair(s) are in this room?", "2"),
    ]
    with (root / "test.jsonl").open("a") as file:
        for i, (kind, question, truth) in enumerate(asked):
            row = {"id": f"{name}-{i}", "dataset": "sevenscenes", "scene_name": name, "question_type": kind}
            file.write(json.dumps(row | {"question": question, "ground_truth": truth, "options": None}) + "\n")
    return root


@pytest.mark.slow
def test_a_posed_scene_under_a_camera_encoding(realdata: Path, tmp_path: Path, test_command) -> None:
    def stretch(poses: torch.Tensor) -> torch.Tensor:
        poses = poses.clone()
        poses[500, :3, :3] *= 1.1
        return poses

    words = ["--config", "prope.yaml", "--data.question_types", "null", "--data.source", "SceneFolder"]
    root = red_kitchen(realdata, tmp_path / "posed")
    red_kitchen(realdata, root, "spoilt", stretch)
    metrics, lines = test_command(*words, "--data.source.root", str(root))
    counts = metrics["counts"]
    assert (counts["questions"], counts["failed"], counts["missing"], counts["filtered"]) == (4, 2, 0, 0)
    by_scene = [[line for line in lines if line["scene"].endswith(name)] for name in ("redkitchen", "spoilt")]
    assert [line["frames"] for line in by_scene[0]] == [[0, 333, 666, 999]] * 2
    assert all("spoilt.cameras.json: frame 500" in line["error"] for line in by_scene[1])
    for cameras in root.glob("sevenscenes/*.cameras.json"):
        cameras.unlink()
    with pytest.raises(SystemExit, match="no scene of the test split has cameras.*redkitchen.cameras.json") as end:
        test_command(*words, "--data.source.root", str(root))
    assert "\n" not in str(end.value)


# ---- every sampler and pairing on the real scenes, by the whole command

SAMPLERS = {
    "uniform": ["UniformSampler"],
    "random": ["RandomSampler"],
    "pose_farthest": ["PoseFarthestSampler", "--data.sampler.start", "medoid"],
    "pose_plane": ["PosePlaneSampler"],
    "space_aware": ["SpaceAwareSampler", "--data.sampler.geometry", "DatasetDepth"],
}
PAIRINGS = {
    "consecutive": ["Consecutive"],
    "neighbor": ["Neighbor"],
    "duplicate": ["Duplicate"],
    "duplicate_views": ["Duplicate", "--data.frame_pairing.keep", "views"],
    "merge_aware": ["OffsetNeighbor"],
}
CASES = [  # each once
    *(("space_aware", "merge_aware"), ("uniform", "consecutive"), ("random", "neighbor"), ("uniform", "duplicate")),
    *(("pose_plane", "duplicate_views"), ("pose_farthest", "neighbor")),
]


@pytest.fixture(scope="module")
def real_scenes(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RedKitchen, every tenth frame with poses and depth; an ARKitScenes video and one of photos, without."""
    root, scenes = tmp_path_factory.mktemp("real"), realdata / "scenes"
    kitchen = scenes / "7scenes_redkitchen"
    (root / "real").mkdir()
    for name, source in {
        "redkitchen": kitchen / "rgb",
        "redkitchen.depth": kitchen / "depth",
        "47334096.mp4": scenes / "arkitscenes_47334096/47334096_28frames_1fps.mp4",
        "bedroom.mp4": scenes / "vggt_room/room.mp4",
    }.items():
        (root / "real" / name).symlink_to(source)
    rows = torch.from_numpy(np.loadtxt(kitchen / "poses_c2w.txt"))[::10]
    K_px = torch.from_numpy(np.loadtxt(kitchen / "camera-intrinsics.txt"))
    poses = invert_se3(rows[:, 1:].reshape(-1, 4, 4))
    write_cameras(root / "real/redkitchen.cameras.json", poses, K_px, width=640, height=480)
    row = {"question_type": "room_size_estimation", "question": "How large is this room?", "ground_truth": "12.0"}
    with (root / "test.jsonl").open("w") as file:
        for i, name in enumerate(("redkitchen", "47334096", "bedroom")):
            file.write(json.dumps({"id": i, "dataset": "real", "scene_name": name, "options": None, **row}) + "\n")
    return root


@pytest.mark.filterwarnings("ignore:.*frames to choose from")
@pytest.mark.parametrize(
    ("sampler", "pairing"), [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[1:])]
)
def test_every_sampler_and_pairing(sampler: str, pairing: str, real_scenes: Path, test_command) -> None:
    metrics, lines = test_command(
        *("--config", "qwen25_vl.yaml", "--data.source", "SceneFolder", "--data.source.root", str(real_scenes)),
        *("--data.sampler", *SAMPLERS[sampler], "--data.frame_pairing", *PAIRINGS[pairing]),
        *("--model.max_new_tokens", "1"),
    )
    by_scene = {line["scene"].partition("/")[2]: line for line in lines}
    assert metrics["counts"]["questions"] == len(by_scene) == 3
    needs_geometry = sampler in ("pose_farthest", "pose_plane", "space_aware")
    for name, line in by_scene.items():
        if needs_geometry and name != "redkitchen":
            # no pose or no depth; the rest goes on
            assert re.search(rf"{name}\.mp4: (the scene has )?no ", line["error"] or "")
            assert line["error"] and line["score"] == 0
            continue
        first, second = line["frames"][::2], line["frames"][1::2]
        assert line["error"] is None and len(line["frames"]) == (8 if pairing == "duplicate_views" else 4)
        assert line["frames"] == sorted(line["frames"]) and len(set(first)) == len(first) > 1
        if pairing.startswith("duplicate"):
            assert first == second
        elif pairing == "neighbor":
            last = {"redkitchen": 99, "47334096": 27, "bedroom": 7}[name]
            assert second == [min(frame + 1, last) for frame in first]
        else:
            assert first != second
    assert metrics["counts"]["failed"] == (2 if needs_geometry else 0)


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute on an idle core
def test_the_150_questions_about_the_size_of_arkitscenes_rooms(realdata: Path, tmp_path: Path, test_command) -> None:
    """VSI-Bench's real questions of all 288 scenes, with four real frames, made small, in the place of 150 videos."""
    root, small = tmp_path / "vsibench", tmp_path / "small"
    (root / "arkitscenes").mkdir(parents=True)
    small.mkdir()
    for frame in sorted((realdata / "scenes/arkitscenes_47334096/frames").iterdir())[::7]:
        with Image.open(frame) as image:
            image.resize((56, 84)).save(small / f"{frame.stem}.png")
    (root / "test.jsonl").symlink_to(realdata / "vsibench/test.jsonl")
    for line in (realdata / "vsibench/arkitscenes_room_size.jsonl").open():
        (root / f"arkitscenes/{json.loads(line)['scene_name']}").symlink_to(small)
    metrics, lines = test_command(
        *("--config", "qwen25_vl.yaml", "--config", "data_vsibench.yaml", "--data.source.root", str(root)),
        *("--data.datasets", "[arkitscenes]", "--data.question_types", "[room_size_estimation]"),
        *("--model.max_new_tokens", "1"),
    )
    entry = metrics["per_question_type"]["room_size_estimation"]
    assert entry["count"] == metrics["counts"]["questions"] == len(lines) == 150 and metrics["counts"]["missing"] == 0
    assert len({line["scene"] for line in lines}) == 150 and not any(line["error"] for line in lines)
