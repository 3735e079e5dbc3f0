"""Which convention explains the images: the right one on points, real frames and rooms, and never an inverted one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules import Rooms
from datamodules.cameras_file import read_cameras
from datamodules.trajectories.conventions import (
    CONVENTIONS,
    GIVEN,
    OPENGL,
    PairMatches,
    fitting_conventions,
    match_features,
    match_frames,
    measure_conventions,
)
from datamodules.video import Video
from tests.datamodules.sources.kitchen import Kitchen
from zoo.cameras import invert_se3, normalize_intrinsics
from zoo.cameras.poses import nearest_rotation, rigid_matrix

WIDTH, HEIGHT = 640, 480
K_PX = torch.tensor([[585.0, 0, 320], [0, 585, 240], [0, 0, 1]], dtype=torch.float64)


# how a world-to-camera pose with OpenCV axes is written in each convention
WRITTEN = dict(
    zip(
        CONVENTIONS,
        (lambda V: V, invert_se3, lambda V: OPENGL @ V, lambda V: invert_se3(V) @ OPENGL),
        strict=True,
    )
)
INVERTED = "camera-to-world, OpenCV axes"


def projected(V: torch.Tensor) -> list[PairMatches]:
    """Exact matches of random points between consecutive cameras."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=generator, dtype=torch.float64) * 2 - 1
    points[:, 2] += 4
    seen = torch.einsum("nij,pj->npi", V[:, :3, :3], points) + V[:, None, :3, 3]
    pixels = (seen @ K_PX.mT)[..., :2] / seen[..., 2:]
    return [PairMatches((i, i + 1), pixels[i], pixels[i + 1]) for i in range(len(V) - 1)]


def fitting(pairs: list[PairMatches], matrices: torch.Tensor) -> list[str]:
    K = normalize_intrinsics(K_PX, WIDTH, HEIGHT).expand(len(matrices), 3, 3)
    return fitting_conventions(measure_conventions(pairs, matrices, K, WIDTH, HEIGHT))


def walk(turn: float, *directions: tuple[float, float, float]) -> torch.Tensor:
    steps = torch.tensor([[0.0, 0, 0], *directions], dtype=torch.float64)
    angles = turn * torch.arange(len(steps), dtype=torch.float64)
    R = torch.matrix_exp(
        torch.einsum("n,ij->nij", angles, torch.tensor([[0.0, -0.3, 1], [0.3, 0, -0.5], [-1, 0.5, 0]]))
    )
    return rigid_matrix(nearest_rotation(R), steps)


@pytest.mark.parametrize("name", CONVENTIONS)
def test_each_convention_is_recognized(name: str) -> None:
    V = walk(0.05, (0.2, 0.1, -0.1), (0.3, -0.1, 0.2), (0.1, 0.2, 0.4))
    assert fitting(projected(V), WRITTEN[name](V)) == [name]


def test_the_sign_of_a_translation_follows_from_what_lies_in_front() -> None:
    K = normalize_intrinsics(K_PX, WIDTH, HEIGHT).expand(2, 3, 3)
    ahead = walk(0.0, (0.1, 0.1, -0.5))
    fits = measure_conventions(projected(ahead), ahead, K, WIDTH, HEIGHT)
    assert fits[INVERTED].error_px < 1e-6 and fits[INVERTED].in_front == 0  # the line alone fits as well
    assert fitting_conventions(fits) == [GIVEN]
    aside = walk(0.0, (0.5, 0.0, 0.0))  # both axes agree on x: it can't be told
    assert fitting(projected(aside), aside) == [GIVEN, "world-to-camera, OpenGL axes"]
    other = walk(0.05, (0.2, 0.1, -0.1), (0.3, -0.1, 0.2))  # of another video
    assert fitting(projected(walk(-0.2, (0.1, 0.3, 0.1), (-0.3, 0.2, 0.2))), other) == []


def recognized(video: Video, V: torch.Tensor, K: torch.Tensor, frames: range, num_pairs: int) -> None:
    pairs = match_frames(video, frames, num_pairs)
    fits = measure_conventions(pairs, V, K, video.width, video.height)
    assert fitting_conventions(fits) == [GIVEN]
    inverted = measure_conventions(pairs, invert_se3(V), K, video.width, video.height)
    assert fitting_conventions(inverted) == [INVERTED]
    assert inverted[GIVEN].explained < 0.25 < fits[GIVEN].explained


@pytest.mark.parametrize(
    ("window", "num_pairs"), [(8, 4), *(pytest.param(n, 12, marks=pytest.mark.slow) for n in (2, 5))]
)
def test_real_frames_fit_the_right_convention_alone(window: int, num_pairs: int, realdata: Path) -> None:
    folder = realdata / "scenes/7scenes_redkitchen"
    video, V = Video(folder / "video_320x240_30fps.mp4"), invert_se3(Kitchen(folder).camera_to_world)
    K = normalize_intrinsics(K_PX, WIDTH, HEIGHT).expand(len(V), 3, 3)
    recognized(video, V, K, range(100 * window, 100 * window + 100), num_pairs)


@pytest.mark.parametrize("trajectory", ["loop", pytest.param("local", marks=pytest.mark.slow)])
def test_rooms_fit_the_right_convention_alone(trajectory: str, tmp_path: Path) -> None:
    rooms = Rooms(trajectory, scenes=(1, 0, 0), size=128, frames=48, root=str(tmp_path), workers=1)
    rooms.prepare()
    for scene in rooms.scenes("train"):
        video = Video(scene.video)
        V, K = read_cameras(str(scene.cameras), video.num_frames, video.height, video.width)
        recognized(video, V, K, range(video.num_frames), 4)


def test_sift_is_taken_where_opencv_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with OpenCV's names: two keypoints with a clear match, and one whose second best is as good."""
    points = [SimpleNamespace(pt=(float(i), 2.0 * i)) for i in range(3)]
    sift = SimpleNamespace(detectAndCompute=lambda image, mask: (points, np.zeros((3, 128), np.float32)))
    nearest = [
        (SimpleNamespace(queryIdx=i, trainIdx=2 - i, distance=d), SimpleNamespace(distance=1.0))
        for i, d in enumerate((0.1, 0.2, 0.9))
    ]
    matcher = SimpleNamespace(knnMatch=lambda a, b, k: nearest)
    stand_in = SimpleNamespace(SIFT_create=lambda n: sift, BFMatcher=lambda norm: matcher, NORM_L2=4)
    monkeypatch.setitem(sys.modules, "cv2", stand_in)
    monkeypatch.setattr("datamodules.trajectories.conventions.importlib.util.find_spec", lambda name: stand_in)
    a, b = match_features(torch.zeros(3, 960, 1280, dtype=torch.uint8), torch.zeros(3, 960, 1280, dtype=torch.uint8))
    assert a.tolist() == [[1, 1], [3, 5]] and b.tolist() == [[5, 9], [3, 5]]  # twice as large, from the corner
