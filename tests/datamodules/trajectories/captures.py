"""A synthetic walk in the format of each app and dataset, by textbook formulas: nothing of the zoo is used.

A camera is a unit quaternion w, x, y, z and a center: camera-to-world with OpenCV axes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
FX, FY, CX, CY = 60.0, 58.0, 30.5, 25.25
NAMES = ("2.jpg", "10.jpg", "11.jpg", "100.jpg")  # natural order is not that of the alphabet


@dataclass
class Walk:
    quaternions: np.ndarray  # (N, 4), w first
    centers: np.ndarray  # (N, 3), meters

    def camera_to_world(self) -> np.ndarray:
        poses = np.tile(np.eye(4), (len(self.centers), 1, 1))
        poses[:, :3, :3], poses[:, :3, 3] = rotation(self.quaternions), self.centers
        return poses

    def world_to_camera(self) -> np.ndarray:
        return np.linalg.inv(self.camera_to_world())


def walk() -> Walk:
    random = np.random.default_rng(0)
    quaternions = random.normal(size=(len(NAMES), 4))
    return Walk(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True), random.normal(size=(len(NAMES), 3)))


def rotation(wxyz: np.ndarray) -> np.ndarray:
    w, x, y, z = wxyz.T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def about_x(wxyz: np.ndarray) -> np.ndarray:
    """The quaternion of the same camera with OpenGL axes: q times a half turn about x."""
    w, x, y, z = wxyz.T
    return np.stack((-x, w, z, -y), -1)


def images(folder: Path, names: tuple[str, ...] = NAMES, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (40 * number, 90, 120)).save(folder / name)


def colmap(folder: Path, scene: Walk) -> None:
    """In units of half a meter; the images are listed in another order, one has no points."""
    images(folder / "images", (*NAMES, "12.jpg"))  # 12.jpg was not registered
    model = folder / "sparse/0"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text(f"# Camera list\n7 PINHOLE {WIDTH} {HEIGHT} {FX} {FY} {CX} {CY}\n")
    lines = ["# Image list with two lines of data per image:"]
    for i in reversed(range(len(NAMES))):
        w, x, y, z = scene.quaternions[i]
        inverse = (w, -x, -y, -z)  # world-to-camera
        t = 2 * scene.world_to_camera()[i, :3, 3]
        lines.append(" ".join([str(i + 1), *(repr(float(v)) for v in (*inverse, *t)), "7", NAMES[i]]))
        lines.append("" if i == 1 else "10.5 20.25 -1 3.0 4.0 17")
    (model / "images.txt").write_text("\n".join(lines) + "\n")


def nerfstudio(folder: Path, scene: Walk) -> None:
    images(folder / "images")
    poses = scene.camera_to_world() @ np.diag([1.0, -1, -1, 1])
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": pose.tolist()}
        for name, pose in zip(NAMES, poses, strict=True)
    ]
    camera = {"fl_x": FX, "fl_y": FY, "cx": CX, "cy": CY, "w": WIDTH, "h": HEIGHT}
    (folder / "transforms.json").write_text(json.dumps({**camera, "frames": frames[::-1]}))


def record3d(folder: Path, scene: Walk) -> None:
    """The frames are half as large as what the metadata states."""
    images(folder / "rgbd", tuple(f"{i}.jpg" for i in range(len(NAMES))))
    w, *xyz = about_x(scene.quaternions).T
    poses = np.stack((*xyz, w, *scene.centers.T), -1)
    K = np.array([[2 * FX, 0, 2 * CX], [0, 2 * FY, 2 * CY], [0, 0, 1]])
    content = {"w": 2 * WIDTH, "h": 2 * HEIGHT, "fps": 30, "K": K.T.flatten().tolist(), "poses": poses.tolist()}
    (folder / "metadata").write_text(json.dumps(content))


def scannet(folder: Path, scene: Walk) -> None:
    images(folder / "color", tuple(f"{i}.jpg" for i in range(len(NAMES))))
    (folder / "pose").mkdir()
    (folder / "intrinsic").mkdir()
    for i, pose in enumerate(scene.camera_to_world()):
        np.savetxt(folder / f"pose/{i}.txt", pose, fmt="%.17g")
    K = np.eye(4)
    K[0, 0], K[1, 1], K[0, 2], K[1, 2] = FX, FY, CX, CY
    np.savetxt(folder / "intrinsic/intrinsic_color.txt", K)


def seven_scenes(folder: Path, scene: Walk) -> None:
    images(folder, tuple(f"frame-{i:06d}.color.png" for i in range(len(NAMES))), (640, 480))
    for i, pose in enumerate(scene.camera_to_world()):
        np.savetxt(folder / f"frame-{i:06d}.pose.txt", pose, fmt="%.17g")
        Image.new("I;16", (640, 480)).save(folder / f"frame-{i:06d}.depth.png")


def tum(folder: Path, scene: Walk) -> None:
    images(folder / "rgb", tuple(f"{i}.png" for i in range(len(NAMES))), (640, 480))
    (folder / "rgb.txt").write_text("".join(f"{i}.0 rgb/{i}.png\n" for i in range(len(NAMES))))
    w, *xyz = scene.quaternions.T
    rows = np.stack((np.arange(len(NAMES), dtype=float), *scene.centers.T, *xyz, w), -1)
    np.savetxt(folder / "groundtruth.txt", rows, fmt="%.17g")


def arkitscenes(folder: Path, scene: Walk) -> None:
    names = tuple(f"{folder.name}_{i}.000" for i in range(len(NAMES)))
    images(folder / "lowres_wide", tuple(f"{name}.png" for name in names))
    (folder / "lowres_wide_intrinsics").mkdir()
    for name in names:
        (folder / f"lowres_wide_intrinsics/{name}.pincam").write_text(f"{WIDTH} {HEIGHT} {FX} {FY} {CX} {CY}")
    w, *xyz = scene.quaternions.T
    half = np.arccos(w)
    vectors = -np.stack(xyz, -1) / np.sin(half)[:, None] * 2 * half[:, None]  # of world-to-camera
    rows = np.concatenate((np.arange(float(len(NAMES)))[:, None], vectors, scene.world_to_camera()[:, :3, 3]), 1)
    np.savetxt(folder / "lowres_wide.traj", rows, fmt="%.17g")


Write = Callable[[Path, Walk], None]
PINHOLE, KINECT, TUM_KINECT = (FX, FY, CX, CY), (585.0, 585.0, 320.0, 240.0), (525.0, 525.0, 319.5, 239.5)
# how each is written, its intrinsics, and the length of its unit in meters
CAPTURES: dict[str, tuple[Write, tuple[float, ...], float]] = {
    "COLMAP": (colmap, PINHOLE, 0.5),
    "Nerfstudio": (nerfstudio, PINHOLE, 1.0),
    "Record3D": (record3d, PINHOLE, 1.0),
    "ScanNet": (scannet, PINHOLE, 1.0),
    "SevenScenes": (seven_scenes, KINECT, 1.0),
    "TUM": (tum, TUM_KINECT, 1.0),
    "ARKitScenes": (arkitscenes, PINHOLE, 1.0),
}
