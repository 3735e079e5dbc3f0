"""How far apart are two marked pixels of two real frames? A dataset of one's own, on 7-Scenes RedKitchen.

    python main.py fit --config prope.yaml --data.source examples.marked_pixels.MarkedPixels

A clip shows four random frames of the recording. A red disc is painted on a pixel of one of them, and a blue disc on a
pixel of another. Depth and poses give the distance of the two points. Poses and depth of each clip are multiplied by a
random factor, so that knowing the kitchen does not give the answer.

The answer is drawn independently of the frames and the factor, and only clips that permit every answer are taken: poses
without pixels tell nothing. Training, validation and test show different frames, with gaps between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.cameras_file import read_cameras_alone, write_cameras
from datamodules.depth import MILLIMETERS, MISSING, read_depth
from datamodules.scenes import Scene
from datamodules.sources import SceneFolder
from datamodules.sources.base import ORACLE, POSSIBLE, ChangePoses, build_once, require_file
from zoo.cameras.poses import invert_se3, nearest_rotation, normalize_intrinsics
from zoo.cameras.rays import patch_depth, token_points
from zoo.files.atomic_io import json_lines, read_json, write_json, write_whole
from zoo.files.fingerprint import fingerprint

VERSION = 1  # increase it with every change to the clips
STEP, VIEWS = 10, 4  # every tenth frame has an image and depth
SPLITS = {"train": range(60), "val": range(62, 68), "test": range(70, 100)}  # of these frames
HEIGHT, WIDTH, PATCH, TOKEN = 84, 112, 14, 28
RADIUS = 4  # of a disc, in pixels
FLAT = 0.05  # largest relative difference between the depth of a marked pixel and the median of its patch
ANSWERS = np.geomspace(1.5, 4.5, 12).round(1)
FACTORS = 1.3, 6.5
PAIRS, TOLERANCE = 4000, 0.01  # number of pairs of pixels, one of which must have each distance up to this share
COLORS = "red", "blue"
KIND = "object_abs_distance"
QUESTION = "What is the distance between the points under the red disc and the blue disc (in meters)?"


class View(NamedTuple):
    """A frame in the size of the clips: its depth in millimeters, and the pixels on which a disc may be painted."""

    image: Image.Image
    depth: Int[np.ndarray, "H W"]
    world_to_camera: Float64[Tensor, "4 4"]
    pixels: Int[np.ndarray, "n 2"]
    points: Float64[np.ndarray, "n 3"]


class MarkedPixels(SceneFolder):
    """Clips of the recording with one question each. They are written on first use, and are for research only.

    Args:
        recording: The folder `data` of github.com/andyzeng/tsdf-fusion-python as poses_c2w.txt (one row per frame: its
            number and its camera-to-world pose), camera-intrinsics.txt, rgb/ and depth/.
        clips: Number of training, validation and test clips.
        seed: Seed of all clips.
        root: Cache folder, with one folder per combination of settings.
    """

    def __init__(
        self,
        recording: str = "data/7scenes_redkitchen",
        clips: tuple[int, int, int] = (1600, 150, 300),
        seed: int = 0,
        root: str = "cache/marked_pixels",
    ) -> None:
        super().__init__(f"{root}/{fingerprint([VERSION, list(clips), seed])[:12]}")
        self.recording, self.clips, self.seed = Path(recording).expanduser(), clips, seed
        self.default_question_types = (KIND,)

    def prepare(self) -> None:
        """Write the clips, unless they exist."""
        if not self.root.exists():
            require_file(self.recording / "poses_c2w.txt", "--data.source.recording is the folder of the recording")
        build_once(self.root, f"waiting for another process that writes {self.root}", self._write)

    def _write(self, folder: Path) -> None:
        K_px = torch.from_numpy(np.loadtxt(self.recording / "camera-intrinsics.txt"))
        with Image.open(self.recording / "rgb/000000.jpg") as image:
            K_px[:2] *= torch.tensor([[WIDTH / image.width], [HEIGHT / image.height]])
        views = read_views(self.recording, K_px)
        for number, (split, frames) in enumerate(SPLITS.items()):
            rows = []
            for index in range(self.clips[number]):
                name = f"{split}_{index:05d}"
                rng = np.random.default_rng([self.seed, number, index])
                answer = write_clip(folder / "kitchen", name, [views[i] for i in frames], K_px, rng)
                row = {"id": name, "dataset": "kitchen", "scene_name": name, "question_type": KIND}
                rows.append({**row, "question": QUESTION, "ground_truth": str(answer)})
            write_whole(folder / f"{split}.jsonl", json_lines(rows))

    def oracles(self, scene: Scene, change_poses: ChangePoses | None = None) -> Mapping[str, Sequence[float]]:
        """Return what each oracle knows about a clip, from its files."""
        assert scene.cameras is not None and scene.depth is not None  # `write_clip` writes both
        poses, K = read_cameras_alone(scene.cameras)
        poses = poses if change_poses is None else change_poses(scene.name, poses)
        marks = read_json(scene.video.with_name(f"{scene.video.name}.marks.json"))
        views, pixels = marks["views"], torch.tensor(marks["pixels"])
        marked, K = poses[views], K[views]
        depth = read_depth(scene.depth, views, num_frames=VIEWS, size_hw=(HEIGHT, WIDTH)).double()

        def points(poses: Tensor, depth: Tensor = depth, side: int = 1) -> Tensor:
            y, x = (pixels // side).T
            return token_points(depth, poses, K, side)[torch.arange(len(COLORS)), y, x]

        def log_distance(side: int = 1) -> float:
            return log(torch.dist(*points(marked, side=side)))

        from_red = invert_se3(marked[0])  # the frame of the red disc's camera
        centers = invert_se3(poses @ from_red)[:, :3, 3]
        baseline, rays = centers[views[1]], points(marked @ from_red, torch.ones_like(depth))
        z = depth[torch.arange(len(COLORS)), *pixels.T]
        known = {
            f"{ORACLE}distance without the factor": [log_distance() - np.log(marks["factor"])],
            f"{ORACLE}poses and pixels without depth": [
                *(log(baseline.norm()), log(torch.pdist(centers).mean()), *baseline, *rays.flatten())
            ],
            f"{ORACLE}depth and pixels without poses": [*z.log(), *(pixels / HEIGHT).flatten()],
            f"{POSSIBLE}points of tokens": [log_distance(TOKEN)],
            f"{POSSIBLE}points of patches": [log_distance(PATCH)],
            f"{POSSIBLE}depth, poses and pixels": [log_distance()],
        }
        return {name: [float(number) for number in numbers] for name, numbers in known.items()}


def log(length: Tensor) -> float:
    """Return the logarithm of a length."""
    return float(length.clamp(min=1e-3).log())


def read_views(recording: Path, K_px: Float64[Tensor, "3 3"]) -> list[View]:
    """Read the frames that have depth, in the size of the clips. A pixel's depth is that of the nearest one."""
    poses = torch.from_numpy(np.loadtxt(recording / "poses_c2w.txt")[::STEP, 1:].reshape(-1, 4, 4))
    poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3], str(recording / "poses_c2w.txt"), "frame")
    K_normalized, (rows, columns) = normalize_intrinsics(K_px, WIDTH, HEIGHT)[None], np.mgrid[:HEIGHT, :WIDTH]
    to_border = np.minimum(np.minimum(rows, HEIGHT - 1 - rows), np.minimum(columns, WIDTH - 1 - columns))
    views = []
    for number, world_to_camera in enumerate(invert_se3(poses)):
        name = f"{number * STEP:06d}"
        with Image.open(recording / f"rgb/{name}.jpg") as image:
            small = image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        with Image.open(recording / f"depth/{name}.png") as image:
            depth = np.array(image.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)).astype(int)
        depth[np.isin(depth, MISSING)] = 0
        meters = torch.from_numpy(depth / MILLIMETERS)[None]
        typical = patch_depth(meters, PATCH)[0].numpy().repeat(PATCH, 0).repeat(PATCH, 1)
        is_flat = (depth > 0) & (np.abs(meters[0].numpy() - typical) < FLAT * typical)
        pixels = np.argwhere((to_border > RADIUS) & is_flat)
        points = token_points(meters, world_to_camera[None], K_normalized, 1)[0].numpy()[tuple(pixels.T)]
        views.append(View(small, depth, world_to_camera, pixels, points))
    return views


def write_clip(
    folder: Path, name: str, views: Sequence[View], K_px: Float64[Tensor, "3 3"], rng: np.random.Generator
) -> float:
    """Draw a clip, and write its frames, cameras, depth and marks. Return the answer."""
    answer = rng.choice(ANSWERS)
    while True:  # until the clip permits every answer
        factor, chosen = np.exp(rng.uniform(*np.log(FACTORS))), rng.choice(len(views), VIEWS, replace=False)
        places = rng.choice(VIEWS, len(COLORS), replace=False)
        marked = [views[chosen[place]] for place in places]
        if min(len(view.pixels) for view in marked):
            drawn = [rng.integers(len(view.pixels), size=PAIRS) for view in marked]
            red, blue = (view.points[own] for view, own in zip(marked, drawn, strict=True))
            lengths = factor * np.linalg.norm(red - blue, axis=1)
            near = np.abs(lengths / ANSWERS[:, None] - 1) < TOLERANCE
            if near.any(1).all():
                break
    pair = rng.choice(np.flatnonzero(near[answer == ANSWERS][0]))
    factor *= answer / lengths[pair]
    pixels = [view.pixels[own[pair]].tolist() for view, own in zip(marked, drawn, strict=True)]
    frames, depths = folder / name, folder / f"{name}.depth"
    frames.mkdir(parents=True)
    depths.mkdir()
    for place, view in enumerate(views[i] for i in chosen):
        image = view.image.copy()
        if place in places:
            mark = int(np.flatnonzero(places == place)[0])
            y, x = pixels[mark]
            ImageDraw.Draw(image).ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=COLORS[mark])
        image.save(frames / f"{place}.png")
        Image.fromarray((view.depth * factor).round().astype(np.uint16)).save(depths / f"{place}.png")
    poses = torch.stack([views[i].world_to_camera for i in chosen])
    poses[:, :3, 3] *= factor
    write_cameras(folder / f"{name}.cameras.json", poses, K_px, width=WIDTH, height=HEIGHT)
    write_json(folder / f"{name}.marks.json", {"views": places.tolist(), "pixels": pixels, "factor": factor})
    return float(answer)
