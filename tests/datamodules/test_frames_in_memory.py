"""Frames in memory are read like the same frames in a folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from datamodules import Duplicate, FramePairing, Neighbor, OffsetNeighbor, PixelBounds, VideoQADataModule
from datamodules.cameras_file import write_cameras
from datamodules.depth import read_depth
from datamodules.inference import load_frames, load_video
from tests.datamodules.clips import HEIGHT, WIDTH, write_folder
from tests.zoo.cameras.test_cameras import random_poses
from zoo.cameras import SceneGeometry, normalize_intrinsics
from zoo.errors import InputError
from zoo.model_spec import ModelSpec

COUNT = 5  # odd: the last frame is merged with itself
TIMES_S = [0.0, 0.4, 1.7, 2.0, 5.1]
PIXELS = PixelBounds(784, 2352, legacy_folder_resize=False)


def folder_of_frames(folder: Path) -> tuple[torch.Tensor, SceneGeometry]:
    """A folder of frames with cameras, one of them unknown, and depth; and the same in memory."""
    write_folder(folder, [f"{i}.png" for i in range(COUNT)])
    poses, K_px = random_poses(COUNT), torch.tensor([[[60.0, 0, 30], [0, 50, 14], [0, 0, 1]]]).double()
    poses[1] = torch.nan
    write_cameras(folder.with_suffix(".cameras.json"), poses, K_px, width=WIDTH, height=HEIGHT, times_s=TIMES_S)
    depth = folder.with_suffix(".depth")
    depth.mkdir()
    for i, millimeters in enumerate(np.random.default_rng(0).integers(1, 5000, (COUNT, 20, 30)).astype(np.uint16)):
        Image.fromarray(millimeters).save(depth / f"{i}.png")
    frames = [np.array(Image.open(folder / f"{i}.png")) for i in range(COUNT)]
    geometry = SceneGeometry(
        world_to_camera=poses.where(poses.isfinite(), torch.eye(4).double()),
        K_normalized=normalize_intrinsics(K_px, WIDTH, HEIGHT).expand(COUNT, 3, 3),
        has_camera=torch.arange(COUNT) != 1,
        depth=read_depth(depth, range(COUNT), num_frames=COUNT, size_hw=(20, 30)),
    )
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2), geometry


@pytest.mark.parametrize("seconds", ["clip", "sampled_fps"])
@pytest.mark.parametrize(
    ("num_frames", "pairing", "frames_as"),
    [
        (COUNT + 1, None, "video"),
        (2 * COUNT, Duplicate(), "video"),
        (2 * COUNT, Neighbor(), "video"),
        (2 * COUNT, OffsetNeighbor(), "video"),
        (COUNT, None, "image"),
        (COUNT, None, "labeled_image"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*the last one is repeated")
def test_frames_in_memory_and_in_a_folder(
    tmp_path: Path, seconds: Any, num_frames: int, pairing: FramePairing | None, frames_as: Any
) -> None:
    frames, geometry = folder_of_frames(tmp_path / "clip")
    data = VideoQADataModule(num_frames=num_frames, frame_pairing=pairing, frames_as=frames_as, pixels=PIXELS)
    data.image_pixels = PIXELS
    model: Any = SimpleNamespace(
        model_spec=lambda: ModelSpec(requires_cameras=True, requires_depth=True, seconds=seconds)
    )
    stored = load_video(model, data, tmp_path / "clip")
    found = load_frames(model, data, frames, TIMES_S, as_images=False, geometry=geometry)
    assert stored.error is None and stored.geometry is not None and found.geometry is not None
    assert stored.frames is not None and found.frames is not None and torch.equal(stored.frames, found.frames)
    for name in ("frame_indices", "seconds_per_grid", "frame_times", "num_images", "labels", "has_true_cameras"):
        assert getattr(stored, name) == getattr(found, name)
    assert stored.geometry.present().keys() == found.geometry.present().keys() >= {"world_to_camera", "depth"}
    for name, value in stored.geometry.present().items():
        torch.testing.assert_close(found.geometry.present()[name], value, rtol=0, atol=1e-12)
    assert geometry.depth is not None and found.geometry.depth is not None  # negative control: another kernel
    depth = geometry.depth[list(found.frame_indices)]
    assert not torch.equal(interpolate(depth[None], found.frames.shape[-2:], mode="nearest")[0], found.geometry.depth)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (torch.linspace(-1, 1, 3 * 56 * 84), "from -1 to 1: give bytes, or floats in 0..1"),
        (torch.full((3 * 56 * 84,), torch.nan), "from nan to nan: give bytes, or floats in 0..1"),
        (torch.zeros(3 * 56 * 84, dtype=torch.int32), r"torch.int32: give bytes \(torch.uint8\), or floats in 0..1"),
    ],
)
def test_frames_of_another_range_or_type_are_errors(frames: torch.Tensor, message: str) -> None:
    model: Any = SimpleNamespace(model_spec=lambda: ModelSpec())
    with pytest.raises(InputError, match=message):
        load_frames(model, VideoQADataModule(), frames.view(1, 3, 56, 84), None, as_images=False)


def test_still_images_in_memory_have_no_labels() -> None:
    """Pictures of a chat are images of their own, however the model is shown the frames of a video."""
    data = VideoQADataModule(frames_as="labeled_image", pixels=PIXELS)
    model: Any = SimpleNamespace(model_spec=lambda: ModelSpec())
    loaded = load_frames(model, data, torch.zeros(3, 3, 56, 84, dtype=torch.uint8), None, as_images=True)
    assert (loaded.num_images, loaded.labels, loaded.frame_indices) == (3, None, (0, 0, 1, 1, 2, 2))
