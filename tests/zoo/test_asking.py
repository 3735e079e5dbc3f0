"""Asking a model in Python: about a file, frames in memory, cameras."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from datamodules.inference import data_of, load_frames
from tests.datamodules.clips import numbered_frame, write_video
from tests.zoo.cameras.test_cameras import random_poses
from tests.zoo.made_models import QUESTIONS, SIZES, model_of
from zoo import (
    InputError,
    MaskedViews,
    PointRoPE,
    SpatialVLM,
    TinyQwen25VL,
)
from zoo.geometry import SceneGeometry


def test_answers_about_a_file_and_its_frames(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4", [numbered_frame(i, 56, 112) for i in range(8)])
    answer = partial(model_of("plain").answer, max_new_tokens=4)
    several = answer(video, QUESTIONS, num_frames=4)
    assert len(several) == 2
    assert several == [answer(video, question, num_frames=4) for question in QUESTIONS]
    frames = torch.randint(0, 256, (4, 3, 56, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    asked = answer(frames, QUESTIONS[0])
    assert isinstance(asked, str)
    assert answer(frames / 255, QUESTIONS[0]) == asked
    assert isinstance(answer(frames[:3], QUESTIONS[0]), str)  # an odd number
    with pytest.raises(FileNotFoundError, match="nothing.mp4"):
        answer(tmp_path / "nothing.mp4", QUESTIONS[0])


def test_answers_by_cameras(rooms_root: Path, tmp_path: Path) -> None:
    answer = partial(model_of("PRoPE").answer, max_new_tokens=4)
    video = next(rooms_root.glob("*/rooms/test_*.mp4"))
    assert isinstance(answer(video, QUESTIONS[0], num_frames=4), str)
    bare = tmp_path / "bare.mp4"
    bare.write_bytes(video.read_bytes())
    with pytest.raises(InputError, match="camera"):
        answer(bare, QUESTIONS[0], num_frames=4)
    cameras = video.with_suffix(".cameras.json")
    given = answer(bare, QUESTIONS[0], num_frames=4, cameras=cameras)
    assert given == answer(video, QUESTIONS[0], num_frames=4)
    with pytest.raises(InputError, match="needs cameras: of frames in memory give a zoo.geometry.SceneGeometry"):
        answer(torch.zeros(4, 3, 56, 56), QUESTIONS[0])


def test_frames_in_memory_may_have_cameras_and_depth() -> None:
    model = SpatialVLM(TinyQwen25VL(**SIZES), camera_encoding=PointRoPE())
    answer = partial(model.answer, max_new_tokens=4)
    frames, poses = torch.rand(5, 3, 56, 84), random_poses(5).float()
    shown = SceneGeometry(world_to_camera=poses, K_normalized=torch.eye(3).repeat(5, 1, 1), depth=torch.rand(5, 20, 30))
    loaded = load_frames(model, data_of(model), frames, None, as_images=False, geometry=shown)
    assert loaded.frames is not None and loaded.geometry is not None and loaded.geometry.depth is not None
    assert torch.equal(loaded.geometry.world_to_camera, poses[[0, 1, 2, 3, 4, 4]])  # an even number of frames
    assert loaded.geometry.depth.shape[1:] == loaded.frames.shape[2:]
    assert isinstance(answer(frames, QUESTIONS[0], cameras=shown), str)
    nothing = (("has_camera", torch.zeros(5).bool(), "cameras"), ("depth", torch.zeros(5, 20, 30), "depth"))
    for name, empty, lacking in nothing:  # none is valid
        without = SceneGeometry(**{**shown.present(), name: empty})
        with pytest.raises(InputError, match=f"needs {lacking}: of frames in memory give a zoo.geometry.SceneGeometry"):
            answer(frames, QUESTIONS[0], cameras=without)
    for wrong, why in ((shown[:4], "4 world_to_camera for 5 frames"), (None, "SceneGeometry"), ("a.json", "no file")):
        with pytest.raises(InputError, match=why):
            answer(frames, QUESTIONS[0], cameras=wrong)
    with pytest.raises(InputError, match="to 255: give bytes, or floats in 0..1"):
        answer(255 * frames / frames.max(), QUESTIONS[0], cameras=shown)
    with pytest.raises(InputError, match="all are shown"):
        answer(frames, QUESTIONS[0], cameras=shown, num_frames=4)


def test_answers_between_two_steps_of_a_training_are_those_of_eval_mode() -> None:
    model = SpatialVLM(TinyQwen25VL(**SIZES), objectives=[MaskedViews(mask_ratio=1.0)])
    frames, seen = torch.rand(4, 3, 56, 84), []
    model.backbone.lm_head.register_forward_hook(lambda *_: seen.append(model.objectives.training))
    model.backbone.vlm.model.visual.eval()  # a part that is frozen
    modes = [module.training for module in model.modules()]
    model.train(False)
    expected = model.answer(frames, QUESTIONS, max_new_tokens=4)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    assert model.answer(frames, QUESTIONS, max_new_tokens=4) == expected and seen and not any(seen)
    assert [module.training for module in model.modules()] == modes and len(set(modes)) == 2
