"""7-Scenes RedKitchen in the format of each dataset of posed scenes, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datamodules.cameras_file import read_cameras
from datamodules.scenes import Scene
from datamodules.sources.posed import PosedScenes
from datamodules.trajectories import TUM, ARKitScenes, Nerfstudio, PoseFormat, ScanNet, ScanNetPlusPlus, SevenScenes
from datamodules.video import Video
from zoo.cameras.poses import invert_se3, nearest_rotation
from zoo.geometry.layers import rotation_to_quaternion

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


def scannet(kitchen: Kitchen, folder: Path) -> None:
    (folder / "pose").mkdir(parents=True)
    (folder / "intrinsic").mkdir()
    for frame in (0, *PICKED):
        link(folder / f"color/{frame}.jpg", kitchen.rgb(frame))
        link(folder / f"depth/{frame}.png", kitchen.depth(frame))
        np.savetxt(folder / f"pose/{frame}.txt", kitchen.camera_to_world[frame])
    np.savetxt(folder / "pose/0.txt", np.full((4, 4), -np.inf))  # not tracked
    np.savetxt(folder / "intrinsic/intrinsic_color.txt", K_px_4x4())


def K_px_4x4() -> np.ndarray:
    K = np.diag([FOCAL, FOCAL, 1, 1])
    K[:2, 2] = CENTER
    return K


def transforms(kitchen: Kitchen, file: Path, images: Path) -> None:
    opengl = np.diag([1.0, -1, -1, 1])
    frames = []
    for frame in PICKED:
        link(images / f"{frame:06d}.jpg", kitchen.rgb(frame))
        pose = kitchen.camera_to_world[frame].numpy() @ opengl
        frames.append({"file_path": f"{frame:06d}.jpg", "transform_matrix": pose.tolist()})
    camera = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": CENTER[0], "cy": CENTER[1], "w": WIDTH, "h": HEIGHT}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"camera_model": "PINHOLE", **camera, "frames": frames[::-1]}))


def nerfstudio(kitchen: Kitchen, folder: Path) -> None:
    transforms(kitchen, folder / "transforms.json", folder)


def scannet_pp(kitchen: Kitchen, folder: Path) -> None:
    nerfstudio_file = folder / "dslr/nerfstudio/transforms_undistorted.json"
    transforms(kitchen, nerfstudio_file, folder / "dslr/resized_undistorted_images")


def between_frames(kitchen: Kitchen) -> range:
    """Frames whose poses are written: the pictures lie between them, so that they must be interpolated."""
    return range(1, len(kitchen.camera_to_world), 2)


def tum(kitchen: Kitchen, folder: Path) -> None:
    for frame in PICKED:
        link(folder / f"rgb/{frame}.jpg", kitchen.rgb(frame))
    (folder / "rgb.txt").write_text("# list\n" + "".join(f"{frame / FPS:.6f} rgb/{frame}.jpg\n" for frame in PICKED))
    frames = between_frames(kitchen)
    poses = kitchen.camera_to_world[list(frames)]
    times_s = torch.tensor([frame / FPS for frame in frames], dtype=torch.float64)
    np.savetxt(folder / "groundtruth.txt", torch.cat((times_s[:, None], poses[:, :3, 3], quaternions(poses)), 1))


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


Write = Callable[[Kitchen, Path], None]
FORMATS: dict[str, tuple[PoseFormat, Write]] = {
    "7-Scenes": (SevenScenes(), seven_scenes),
    "ScanNet": (ScanNet(), scannet),
    "nerfstudio": (Nerfstudio(), nerfstudio),
    "ScanNet++": (ScanNetPlusPlus(), scannet_pp),
    "TUM": (TUM(K_px=(FOCAL, FOCAL, *CENTER)), tum),
    "ARKitScenes": (ARKitScenes(), arkit),
}


def ask(root: Path, *scenes: str) -> None:
    rows = [
        {
            "id": i,
            "dataset": "raw",
            "scene_name": scene,
            "question_type": "object_counting",
            "question": "How many chair(s) are in this room?",
            "ground_truth": "2",
            "options": None,
        }
        for i, scene in enumerate(scenes)
    ]
    root.mkdir(parents=True, exist_ok=True)
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def posed(tmp_path: Path, poses: PoseFormat, **settings) -> PosedScenes:
    return PosedScenes(str(tmp_path / "raw"), poses, cache=str(tmp_path / "cache"), **settings)


def cameras_of(scene: Scene) -> tuple[Video, torch.Tensor, torch.Tensor]:
    video = Video(scene.video)
    assert scene.cameras is not None
    return video, *read_cameras(scene.cameras, video.num_frames, video.height, video.width)
