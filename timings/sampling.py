"""Space-aware sampling from point maps to voxels to picks, compared with sets of tuples and with decoding.

The points are those of a furnished box-shaped room, seen by a camera that walks through it. Voxels and picks of both
ways must be equal. Times are medians of interleaved repeats. The pose sampler's time is for choosing --views of --poses
random poses.

python -m timings.sampling [--frames 128] [--height 294] [--width 518] [--views 16] [--threads 2] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.samplers import PoseFarthestSampler, PosePlaneSampler, SceneView, maximum_coverage, voxelize
from datamodules.samplers.space_aware import encoder_images
from datamodules.video import Video, even_steps
from timings.measure import interleaved, spread
from timings.tables import markdown
from timings.video import write_clip

ROOM_M = np.array([6.0, 5.0, 2.7])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=128)
    parser.add_argument("--height", type=int, default=294)
    parser.add_argument("--width", type=int, default=518)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument("--poses", type=int, default=2000)
    parser.add_argument("--clip-seconds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    points, confidence = room(arguments.frames, arguments.height, arguments.width)
    arrays, tuples = voxelize(points, confidence), sets_of_tuples(points, confidence)
    assert [set(map(tuple, voxels.tolist())) for voxels in arrays] == tuples
    assert maximum_coverage(arrays, arguments.views) == greedy(tuples, arguments.views)
    sizes = [len(voxels) for voxels in arrays]

    poses = random_poses(arguments.poses)
    with tempfile.TemporaryDirectory() as folder:
        write_clip(clip := Path(folder) / "clip.mp4", 250, arguments.clip_seconds, 640, 480)
        video = Video(clip)
        candidates = even_steps(video.num_frames, arguments.frames)
        work: dict[str, Callable[[], Any]] = {
            "voxels, sets of tuples": lambda: sets_of_tuples(points, confidence),
            "voxels": lambda: voxelize(points, confidence),
            "picks, sets of tuples": lambda: greedy(tuples, arguments.views),
            "picks": lambda: maximum_coverage(arrays, arguments.views),
            "voxels and picks": lambda: maximum_coverage(voxelize(points, confidence), arguments.views),
            f"decoding {len(candidates)} candidates of a {arguments.clip_seconds} s clip": lambda: video.read(
                candidates
            ),
            "and resizing them for VGGT": lambda: encoder_images(list(video.read(candidates))),
            f"PoseFarthestSampler on {len(poses)} poses": lambda: PoseFarthestSampler("std", "medoid")(
                walk(poses), arguments.views
            ),
            f"PosePlaneSampler on {len(poses)} poses": lambda: PosePlaneSampler()(walk(poses), arguments.views),
        }
        seconds = interleaved(work, arguments.repeats)
    print(
        f"{arguments.frames} maps of {arguments.height} x {arguments.width}, {min(sizes)} to {max(sizes)} voxels each, "
        f"{arguments.views} picks, {arguments.threads} threads, numpy {np.__version__}, torch {torch.__version__}"
    )
    print(markdown([{"what": name, "seconds, median (least to most)": spread(t, 4)} for name, t in seconds.items()]))
    for part in ("voxels", "picks"):
        slow, fast = (statistics.median(seconds[name]) for name in (f"{part}, sets of tuples", part))
        print(f"{part}: {slow / fast:.1f} times faster, same result")


def sets_of_tuples(points: torch.Tensor, confidence: torch.Tensor) -> list[set[tuple[int, ...]]]:
    """Compute voxels by the same rule, as one set of triples per frame, like the official code."""
    sure = (confidence >= float(np.percentile(confidence.numpy(), 50))) & (confidence > 0.1)
    low, high = points[sure].min(0).values, points[sure].max(0).values
    size = (high - low).min() / 20
    sets = []
    for frame, mask in zip(points, sure, strict=True):
        cells = ((frame[mask] - low) / size).floor().long()
        sets.append(set(map(tuple, torch.unique(cells, dim=0).tolist())))
    return sets


def greedy(sets: list[set[tuple[int, ...]]], k: int) -> list[int]:
    """Compute greedy coverage by checking every frame in every round."""
    chosen: list[int] = []
    covered: set[tuple[int, ...]] = set()
    left = list(range(len(sets)))
    while left and len(chosen) < k:
        gains = [len(sets[frame] - covered) for frame in left]
        if max(gains) == 0:
            break
        chosen.append(left.pop(gains.index(max(gains))))
        covered |= sets[chosen[-1]]
    return chosen


def room(frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 points (frames, height, width, 3) on the walls of a box, and confidence falling with distance."""
    rng = np.random.default_rng(0)
    u, v = np.meshgrid((np.arange(width) + 0.5) / width - 0.5, (np.arange(height) + 0.5) / width - height / width / 2)
    points = np.empty((frames, height, width, 3), np.float32)
    confidence = np.empty((frames, height, width), np.float32)
    for i, turn in enumerate(np.linspace(0, 2 * np.pi, frames)):
        center = ROOM_M / 2 + np.array([1.5 * np.cos(turn), 1.2 * np.sin(turn), -0.1])
        heading = turn + np.pi + 0.8 * np.sin(3 * turn)
        ahead = np.array([np.cos(heading), np.sin(heading), -0.15])
        right = np.array([np.sin(heading), -np.cos(heading), 0.0])
        rays = ahead + 1.2 * (u[..., None] * right + v[..., None] * np.array([0.0, 0.0, -1.0]))
        reach = np.where(rays > 0, ROOM_M - center, -center) / np.where(rays == 0, 1e-9, rays)
        depth = reach.min(-1) * (1 - 0.15 * (np.sin(9 * u + turn) * np.sin(7 * v) > 0.5))  # furniture
        points[i] = center + depth[..., None] * rays
        confidence[i] = 1 + 5 * np.exp(-depth / 2) + 0.2 * rng.random((height, width))
    points += rng.normal(scale=0.01, size=points.shape).astype(np.float32)
    return torch.from_numpy(points), torch.from_numpy(confidence)


def random_poses(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    Q = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64)).Q
    poses[:, :3, :3] = Q * torch.linalg.det(Q)[:, None, None]
    poses[:, :3, 3] = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return poses


def walk(poses: torch.Tensor) -> SceneView:
    """Return a scene that has only poses."""
    video = Video.__new__(Video)
    video.num_frames, video.path = len(poses), Path("walk.mp4")
    return SceneView(video, poses)


if __name__ == "__main__":
    main()
