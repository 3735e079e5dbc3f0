"""7-Scenes RedKitchen in its own format and in that of ARKitScenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from zoo.cameras.poses import invert_se3, nearest_rotation, rotation_to_quaternion

FOCAL, CENTER, WIDTH, HEIGHT = 585.0, (320.0, 240.0), 640, 480
PICKED = range(300, 360, 10)  # the frames whose pictures and depth there are, every tenth
FPS = 30
ID = "41069025"


class Kitchen:
    """The raw material: camera-to-world poses of all 1,000 frames, pictures and depth of every tenth."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rows = torch.from_numpy(np.loadtxt(folder / "poses_c2w.txt"))
        poses = rows[:, 1:].reshape(-1, 4, 4)
        poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3])
        # a world whose z axis points up: the first camera is held nearly level
        up = -poses[PICKED[0], :3, 1]
        forward = poses[PICKED[0], :3, 2] - up * (up @ poses[PICKED[0], :3, 2])
        forward /= forward.norm()
        world = torch.eye(4, dtype=torch.float64)
        world[:3, :3] = torch.stack((torch.linalg.cross(forward, up), forward, up))
        self.camera_to_world = world @ poses

    def rgb(self, frame: int) -> Path:
        return self.folder / f"rgb/{frame:06d}.jpg"

    def depth(self, frame: int) -> Path:
        return self.folder / f"depth/{frame:06d}.png"


def link(target: Path, source: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def seven_scenes(kitchen: Kitchen, folder: Path) -> None:
    for frame in PICKED:
        link(folder / f"frame-{frame:06d}.color.jpg", kitchen.rgb(frame))
        link(folder / f"frame-{frame:06d}.depth.png", kitchen.depth(frame))
        np.savetxt(folder / f"frame-{frame:06d}.pose.txt", kitchen.camera_to_world[frame])


def between_frames(kitchen: Kitchen) -> range:
    """Frames whose poses are written: the pictures lie between them, so that they must be interpolated."""
    return range(1, len(kitchen.camera_to_world), 2)


def quaternions(poses: torch.Tensor) -> torch.Tensor:
    return rotation_to_quaternion(poses[:, :3, :3])


def arkit(kitchen: Kitchen, folder: Path, held: int = 0) -> None:
    """held: clockwise quarter turns by which the device was held, so that its pictures lie on their side."""
    turn = torch.eye(4, dtype=torch.float64)
    for _ in range(held):  # a camera that is turned with the device, before the picture is taken
        turn = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64) @ turn
    frames = between_frames(kitchen)
    poses = turn @ invert_se3(kitchen.camera_to_world[list(frames)])
    q = quaternions(poses)
    q = torch.where(q[:, 3:] < 0, -q, q)
    axis_angle = q[:, :3] / q[:, :3].norm(dim=1, keepdim=True) * 2 * q[:, 3:].acos()
    times_s = torch.tensor([frame / FPS for frame in frames], dtype=torch.float64)
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "lowres_wide.traj", torch.cat((times_s[:, None], axis_angle, poses[:, :3, 3]), 1))
    for name in ("lowres_wide", "lowres_wide_intrinsics", "lowres_depth"):
        (folder / name).mkdir()
    width, height = (WIDTH, HEIGHT) if held % 2 == 0 else (HEIGHT, WIDTH)
    x, y, sides = *CENTER, (WIDTH, HEIGHT)
    for _ in range(held):  # (x, y) -> (height - y, x)
        x, y, sides = sides[1] - y, x, sides[::-1]
    for frame in PICKED:
        name = f"{ID}_{frame / FPS:.3f}"
        row = [width, height, FOCAL, FOCAL, x, y]
        (folder / f"lowres_wide_intrinsics/{name}.pincam").write_text(" ".join(map(str, row)))
        for source, kind in ((kitchen.rgb(frame), "lowres_wide"), (kitchen.depth(frame), "lowres_depth")):
            with Image.open(source) as image:
                small = np.rot90(np.array(image), -held)
                Image.fromarray(small).save(folder / kind / f"{name}.png", compress_level=0)
