"""The `test` command on damaged scenes: each is named with its fault, and the others are scored."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main
from datamodules.video import Video

FRAMES, SHORT = 48, 3


def edit(cameras: Path, change) -> None:
    content = json.loads(cameras.read_text())
    change(content["world_to_camera"])
    cameras.write_text(json.dumps(content))


def forget_some(clip: Path) -> None:
    depth_images(clip, FRAMES, 2000)
    edit(clip.with_name(f"{clip.stem}.cameras.json"), lambda poses: poses.__setitem__(slice(30), [None] * 30))


def forget_most(poses: list) -> None:
    poses[:] = [pose if i in (3, 4, 5) else None for i, pose in enumerate(poses)]


def write_nan(poses: list) -> None:
    poses[7][0][3] = float("nan")


def depth_images(clip: Path, count: int, millimeters: int) -> None:
    clip.with_name(f"{clip.stem}.scene.json").unlink()
    folder = clip.with_name(f"{clip.stem}.depth")
    folder.mkdir()
    for i in range(count):
        Image.fromarray(np.full((56, 56), millimeters, np.uint16)).save(folder / f"{i:03d}.png")


def cut(clip: Path) -> None:
    clip.write_bytes(clip.read_bytes()[:-2000])


def shorten(clip: Path) -> None:
    """A folder of three frames in place of the clip, with three cameras."""
    (clip.parent / clip.stem).mkdir()
    for i, frame in enumerate(Video(clip).read(range(SHORT))):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(clip.parent / clip.stem / f"{i}.png")
    clip.unlink()
    edit(clip.with_name(f"{clip.stem}.cameras.json"), lambda poses: poses.__delitem__(slice(SHORT, None)))
    depth_images(clip, SHORT, 2000)


def cameras(change):
    return lambda clip: edit(clip.with_name(f"{clip.stem}.cameras.json"), change)


# scene: the damage to a good one, and the error; None where it is answered
CASES = {
    "fine": (lambda clip: None, None),
    "short": (shorten, None),
    "some_unknown": (forget_some, None),
    "gap": (cameras(forget_most), r"gap.cameras.json: none of the frames \[0, 16, 31, 47\] has a pose: take a sampler"),
    "nan": (cameras(write_nan), "nan.cameras.json: frame 7: world_to_camera holds NaN or infinite numbers"),
    "fewer": (cameras(lambda poses: poses.pop()), "fewer.cameras.json: 47 poses for a video of 48 frames"),
    "bare": (lambda clip: clip.with_name("bare.cameras.json").unlink(), "bare.mp4: no cameras, and this model needs"),
    "flat": (lambda clip: clip.with_name("flat.scene.json").unlink(), "flat.mp4: no depth, and this model needs it"),
    "dark": (lambda clip: depth_images(clip, FRAMES, 0), "dark.depth: empty, no pixel of frames .* has depth"),
    "cut": (cut, "cut.mp4: truncated after .* frames|cut.mp4: not a video, or cut short"),
    "gone": (Path.unlink, None),  # counted as missing
}  # fmt: skip


@pytest.fixture
def folder(rooms_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of one room by the names of the cases, each with its damage and one question."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOO_RUN", raising=False)
    return broken(rooms_root, tmp_path / "data", CASES)


def broken(rooms_root: Path, root: Path, cases: dict) -> Path:
    (root / "mine").mkdir(parents=True)
    room = sorted(rooms_root.glob("*/rooms/test_*.mp4"))[0]
    row = {"question_type": "object_counting", "question": "How many?", "ground_truth": "4", "options": None}
    with (root / "test.jsonl").open("w") as file:
        for i, (name, (spoil, _)) in enumerate(cases.items()):
            for suffix in (".mp4", ".cameras.json", ".scene.json"):
                shutil.copy(room.with_name(room.stem + suffix), root / "mine" / (name + suffix))
            spoil(root / "mine" / f"{name}.mp4")
            file.write(json.dumps({"id": i, "dataset": "mine", "scene_name": name, **row}) + "\n")
    return root


def run_test(monkeypatch: pytest.MonkeyPatch, root: Path, *words: str) -> tuple[dict, dict[str, dict]]:
    """(metrics.json, predictions by scene) of `main.py test` with a random model that requires cameras and depth."""
    monkeypatch.setattr(
        sys,
        "argv",
        ["main.py", "test", "--config", "spatial_mllm.yaml", "--model.geometry", "DatasetGeometry"]
        + ["--data.source", "SceneFolder", "--data.source.root", str(root), "--data.question_types", "null"]
        + ["--model.allow_untrained", "true", "--data.num_frames", "4", "--trainer.default_root_dir", "run", *words],
    )
    main.main()
    lines = [json.loads(line) for line in Path("run/predictions.jsonl").read_text().splitlines()]
    return json.loads(Path("run/metrics.json").read_text()), {line["scene"].split("/")[1]: line for line in lines}


def test_every_fault_is_named_and_the_others_are_scored(folder: Path, monkeypatch, capsys) -> None:
    with pytest.warns(UserWarning, match="mine/short: only 3 frames"):
        metrics, lines = run_test(monkeypatch, folder)
    printed = capsys.readouterr().out
    faults = {name: fault for name, (_, fault) in CASES.items() if fault}
    assert metrics["counts"]["questions"] == len(lines) == len(CASES) - 1
    assert metrics["counts"]["failed"] == len(metrics["failed_scenes"]) == len(faults)
    assert metrics["missing_scenes"] == {"mine/gone": 1} and "mine/gone" in printed
    for name, line in lines.items():
        if name in faults:
            assert re.search(faults[name], line["error"]) and "\n" not in line["error"] and line["score"] == 0
            assert {"scene": f"mine/{name}", "error": line["error"], "questions": 1} in metrics["failed_scenes"]
            assert f"mine/{name}" in printed
        else:
            assert line["error"] is None and len(line["frames"]) == 4, line["error"]
    assert lines["short"]["frames"] == [0, 1, 2, 2]
