"""The clips of examples/marked_pixels.py: their files answer their questions, and no frame is in two splits."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.cameras_file import read_cameras_alone
from datamodules.resize import resize_frames
from datamodules.video import Video
from examples.marked_pixels import SPLITS, STEP, MarkedPixels

EXACT = "possible: depth, poses and pixels"


@pytest.fixture(scope="module")
def clips(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> MarkedPixels:
    root = str(tmp_path_factory.mktemp("clips"))
    source = MarkedPixels(str(realdata / "scenes/7scenes_redkitchen"), clips=(3, 1, 3), root=root)
    source.prepare()
    return source


def test_depth_and_poses_give_the_answer_and_wrong_poses_do_not(clips: MarkedPixels) -> None:
    def doubled(name: str, poses: Tensor) -> Tensor:
        return torch.cat((poses[..., :3], 2 * poses[..., 3:]), -1)

    for scene in [*clips.scenes("train"), *clips.scenes("test")]:
        answer = float(scene.questions[0].ground_truth)
        right, wrong = (clips.oracles(scene, change)[EXACT][0] for change in (None, doubled))
        assert torch.tensor(right).exp().item() == pytest.approx(answer, rel=1e-3)
        assert torch.tensor(wrong).exp().item() != pytest.approx(answer, rel=1e-2)


def test_discs_are_visible_in_the_frames_that_models_get(clips: MarkedPixels) -> None:
    for scene in clips.scenes("test"):
        marks = json.loads(scene.video.with_name(f"{scene.video.name}.marks.json").read_text())
        video = Video(scene.video)
        frames = resize_frames(video.read(range(video.num_frames))).float()  # larger: the official least size
        scale = frames.shape[-1] / video.width
        colors = [
            frames[view, :, int((y + 0.5) * scale), int((x + 0.5) * scale)].tolist()
            for view, (y, x) in zip(marks["views"], marks["pixels"], strict=True)
        ]
        assert colors == [pytest.approx([255, 0, 0], abs=3), pytest.approx([0, 0, 255], abs=3)]
        unmarked = next(view for view in range(video.num_frames) if view not in marks["views"])
        y, x = (int((side + 0.5) * scale) for side in marks["pixels"][0])
        assert frames[unmarked, :, y, x].tolist() != pytest.approx([255, 0, 0], abs=3)


def test_splits_show_different_frames_with_gaps_between_them(clips: MarkedPixels, realdata: Path) -> None:
    recorded = np.loadtxt(realdata / "scenes/7scenes_redkitchen/poses_c2w.txt")[::STEP, 1:].reshape(-1, 4, 4)
    shown = {}
    for split in SPLITS:
        cameras = [scene.cameras for scene in clips.scenes(split)]
        rotations = torch.cat([read_cameras_alone(file)[0] for file in cameras if file])[:, :3, :3].mT.numpy()
        differences = np.abs(rotations[:, None] - recorded[:, :3, :3]).max((2, 3))
        assert differences.min(1).max() < 1e-3 < np.sort(differences, axis=1)[:, 1].min()  # one frame fits, no other
        shown[split] = set(differences.argmin(1).tolist())
    assert all(frames <= set(SPLITS[split]) for split, frames in shown.items())
    assert all(later.start - earlier.stop >= 2 for earlier, later in pairwise(SPLITS.values()))
