"""Write studies/pairs.md: what pairs of selected frames merge on real trajectories.

    ZOO_REALDATA=<folder> python -m docs.pairs

Five scenes of VSI-Bench have poses but no depth. A frame there shows the points at one depth in its field of view.
7-Scenes RedKitchen has depth, and shows what this simplification changes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from datamodules.samplers import (
    DatasetDepth,
    FrameSampler,
    PointMaps,
    PointSource,
    PoseFarthestSampler,
    SceneView,
    SpaceAwareSampler,
    UniformSampler,
    voxelize,
)
from datamodules.video import Video
from timings.tables import markdown
from zoo.cameras import intrinsics_in_pixels, invert_se3, normalize_intrinsics
from zoo.cameras.poses import nearest_rotation, pose_distance
from zoo.cameras.rays import pixel_center_intrinsics
from zoo.geometry import unproject_depth
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

DOCUMENT = Path(__file__).parents[1] / "studies" / "pairs.md"
GRID_HW = (24, 32)  # points of a frame
DEPTH_M = 2.0
FRAMES = (16, 32)
KITCHEN = "7-Scenes RedKitchen"
TEXT = f"""# What do pairs of selected frames merge on real trajectories?

Qwen merges each two selected frames into one visual token. Does uniform sampling merge similar frames, and view-diverse
sampling views that differ? Nothing is trained here.

With few frames both merge views that differ. Of 16 uniform frames of VSI-Bench's scenes, the two of a token are 44
degrees and 0.69 m apart in the median, and a fifth of what one shows lies in the other's field of view. Pose-farthest
sampling merges views that are 58 degrees apart and share as much. With 32 frames, and in RedKitchen, a scan of half a
minute, pairs are nearer, and those of space-aware sampling the nearest. So the risk is that of few frames, and
uniform sampling does not avoid it.

- *Angle*, *distance* and *overlap* are medians over the merged pairs of all scenes of a row.
- The overlap of two views is the share of one's points that lie in the other's field of view, the mean of both
  directions. Nothing hides a point.
- *Coverage* is the share of all frames' voxels that the selected frames show, the mean over scenes.
- The five scenes of VSI-Bench have 90 poses each, 0.6 to 2.1 seconds apart, and RedKitchen has 100. With
  32 frames each sampler takes about every third.
- VSI-Bench's scenes come without depth. There each pixel shows a point at a depth of {DEPTH_M:g} m. Space-aware
  sampling covers the voxels of these points. The published method covers those of VGGT's points. The last rows have
  RedKitchen's measured depth.

`python -m docs.pairs` makes this file. `ZOO_REALDATA` must name the folder of real scenes.

"""


class FixedDepth(PointSource):
    """Place the points of each pixel at one depth, for scenes without depth.

    Args:
        depth_m: Depth in meters.
    """

    def __init__(self, depth_m: float = DEPTH_M) -> None:
        self.depth_m = depth_m

    def points(self, scene: SceneView) -> PointMaps:
        """See `PointSource`."""
        assert scene.K_normalized is not None
        poses, K, (height, width) = scene.poses, scene.K_normalized[scene.pool], GRID_HW
        K_px = pixel_center_intrinsics(intrinsics_in_pixels(K, width, height))
        depth = torch.full((len(poses), height, width, 1), self.depth_m)
        return PointMaps(unproject_depth(depth, poses, K_px), torch.ones(depth.shape[:-1]), poses, K)


class Merged(NamedTuple):
    """What a sampler's pairs merge in a scene, and what its frames cover.

    Attributes:
        angle_deg: Angle between the two views of each pair.
        distance_m: Distance of their centers.
        overlap: Share of their points that both show.
        coverage: Share of all frames' voxels in the selected frames.
    """

    angle_deg: Float[np.ndarray, " pairs"]
    distance_m: Float[np.ndarray, " pairs"]
    overlap: Float[np.ndarray, " pairs"]
    coverage: float


def merged(scene: SceneView, sampler: FrameSampler, frames: int, points: PointSource) -> Merged:
    """Select frames and describe the consecutive pairs.

    Args:
        scene: The scene.
        sampler: Chooses the frames.
        frames: Number of frames.
        points: What each frame shows.
    """
    chosen = sampler(scene, frames)
    maps = points.points(scene)
    first, second = np.reshape(chosen, (-1, TEMPORAL_PATCH_SIZE)).T.tolist()
    angle, distance = pose_distance(scene.poses[first], scene.poses[second])
    pairs = zip(first, second, strict=True)
    overlap = [(share_seen(maps, a, by=b) + share_seen(maps, b, by=a)) / 2 for a, b in pairs]
    voxels = [set(map(tuple, own.tolist())) for own in voxelize(maps.points, maps.confidence)]
    coverage = len(set().union(*(voxels[frame] for frame in chosen))) / len(set().union(*voxels))
    return Merged(angle.rad2deg().numpy(), distance.numpy(), np.array(overlap), coverage)


def share_seen(maps: PointMaps, frame: int, by: int) -> float:
    """Return the share of a frame's points in the field of view of another frame."""
    assert maps.world_to_camera is not None and maps.K_normalized is not None
    points = maps.points[frame][maps.confidence[frame] > 0].double()
    pose, K = maps.world_to_camera[by], maps.K_normalized[by].double()
    x, y, z = (points @ pose[:3, :3].T + pose[:3, 3]).T
    across, down = K[0, 0] * x + K[0, 2] * z, K[1, 1] * y + K[1, 2] * z  # in frames from the middle, times depth
    return float(((z > 0) & (across.abs() <= z / 2) & (down.abs() <= z / 2)).double().mean())


# ---- The scenes ------------------------------------------------------------------------------------------------------


def posed(camera_to_world: Tensor, K_px: Tensor, width: int, height: int, video: Video | None = None) -> SceneView:
    """Return a scene of poses, with black pictures if there is no video."""
    camera_to_world[:, :3, :3] = nearest_rotation(camera_to_world[:, :3, :3])
    frames = len(camera_to_world)
    video = video or Video(torch.zeros(frames, 3, *GRID_HW, dtype=torch.uint8))
    K = normalize_intrinsics(K_px, width, height).expand(frames, 3, 3)
    depth = video.path.with_name("depth") if video.is_folder else None
    return SceneView(video, invert_se3(camera_to_world), K, depth)


def vsibench(folder: Path) -> list[SceneView]:
    """Return VSI-Bench's scenes."""
    scenes = []
    for file in sorted(folder.glob("*_*.json")):
        scene = json.loads(file.read_text())
        poses, K_px = (
            torch.tensor(each, dtype=torch.float64) for each in (scene["gt"]["poses"], scene["intrinsics_color"])
        )
        scenes.append(posed(poses.reshape(-1, 4, 4), K_px[:3, :3], scene["image_width"], scene["image_height"]))
    return scenes


def red_kitchen(folder: Path) -> SceneView:
    """Return every tenth frame of RedKitchen, those with depth."""
    poses = torch.from_numpy(np.loadtxt(folder / "poses_c2w.txt")[::10, 1:]).reshape(-1, 4, 4)
    K_px = torch.from_numpy(np.loadtxt(folder / "camera-intrinsics.txt"))
    return posed(poses, K_px, 640, 480, Video(folder / "rgb"))


# ---- The document ----------------------------------------------------------------------------------------------------


def rows(realdata: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of the table."""
    scenes = realdata / "scenes"
    kitchen, fixed = [red_kitchen(scenes / "7scenes_redkitchen")], FixedDepth()
    groups: dict[str, tuple[list[SceneView], PointSource]] = {
        "VSI-Bench": (vsibench(scenes / "vsibench_trajectories"), fixed),
        KITCHEN: (kitchen, fixed),
        f"{KITCHEN}, measured depth": (kitchen, DatasetDepth(longest_side=max(GRID_HW))),
    }
    for (name, (views, points)), frames in product(groups.items(), FRAMES):
        samplers: dict[str, FrameSampler] = {
            "uniform": UniformSampler(),
            "pose-farthest": PoseFarthestSampler(),
            "space-aware": SpaceAwareSampler(points, cache=None),
        }
        for label, sampler in samplers.items():
            found = [merged(view, sampler, frames, points) for view in views]
            angle, distance, overlap = (np.median(np.concatenate(each)) for each in list(zip(*found, strict=True))[:3])
            yield {
                "scenes": name,
                "frames": str(frames),
                "sampler": label,
                "angle": f"{angle:.0f}°",
                "distance": f"{distance:.2f} m",
                "overlap": f"{overlap:.2f}",
                "coverage": f"{np.mean([each.coverage for each in found]):.2f}",
            }


if __name__ == "__main__":
    if not (root := os.environ.get("ZOO_REALDATA")):
        sys.exit("ZOO_REALDATA must name the folder of real scenes")
    DOCUMENT.write_text(TEXT + markdown(list(rows(Path(root)))) + "\n", encoding="utf-8")
