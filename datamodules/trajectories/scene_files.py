"""Write a trajectory in the layout of `datamodules.sources.annotations`: frames or a video, and their cameras.json."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from datamodules.cameras_file import write_cameras
from datamodules.trajectories.base import Match, Trajectory
from datamodules.video import EXIF_ORIENTATION, IMAGE_SUFFIXES, Video, image_size

TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


@dataclass(frozen=True)
class TimestampMatching:
    """How video frames are matched with poses by time. Poses without times are matched at even steps.

    Args:
        match: "slerp" interpolates between the poses before and after a frame, "nearest" takes the nearest.
        tolerance_s: Maximum time in seconds between a frame and its poses.
        start_s: Start of the video in seconds after the first pose.
    """

    match: Match = "slerp"
    tolerance_s: float = 0.2
    start_s: float = 0.0


def write_scene(
    folder: Path, name: str, trajectory: Trajectory, video: Video | None = None, clock: TimestampMatching | None = None
) -> None:
    """Write a scene: link the frames that have a pose, or match the frames of a video, and write their cameras.

        <folder>/<name>/000000.jpg     links to the frames, or turned copies; none for a video
        <folder>/<name>.depth/         the same for depth images, if any, also for a video
        <folder>/<name>.cameras.json   written last

    Args:
        folder: Folder of the scenes. It has nothing of this scene yet.
        name: Name of the scene, which may contain folders.
        trajectory: Frames with their cameras. For a video, poses with times.
        video: Upright video on the clock of the poses.
        clock: How video frames are matched with poses.

    Raises:
        FileExistsError: A folder of the scene exists. Its content is kept.
        ValueError: There is no pose, times decrease, intrinsics belong to other images, images are on their side, of
            another format or of several sizes, an image has two poses, or the video does not fit.
    """
    trajectory = _checked(trajectory)
    if video is not None:
        trajectory = _match_video(video, trajectory, clock or TimestampMatching())
    if num_unknown := int((~trajectory.known).sum()):
        excluded = " and are excluded" if video is None else ""
        tqdm.write(f"{name}: {num_unknown} of {len(trajectory)} frames have no pose{excluded}", file=sys.stderr)
    if video is None:
        trajectory = trajectory.only(trajectory.known)
        height, width = _checked_size(trajectory.frames)
        trajectory = trajectory.resized(width, height)
    for images, suffix in ((trajectory.frames, ""), (trajectory.depth, ".depth")):
        if images:
            _link_images(images, folder / f"{name}{suffix}", trajectory.quarter_turns)
    trajectory = trajectory.turned()
    poses, width, height = trajectory.world_to_camera, trajectory.width, trajectory.height
    times_s = None if trajectory.times_s is None else trajectory.times_s.tolist()
    write_cameras(folder / f"{name}.cameras.json", poses, trajectory.K_px, width=width, height=height, times_s=times_s)


def _checked(trajectory: Trajectory) -> Trajectory:
    if not trajectory.known.any():
        raise ValueError("no frame has a pose that is finite and close in time")
    K = trajectory.K_px[trajectory.known]
    is_inside = (K[:, :2, 2] > 0) & (K[:, :2, 2] < K.new_tensor([trajectory.width, trajectory.height]))
    has_focal = (K[:, 0, 0] > 0) & (K[:, 1, 1] > 0)
    if not (K.isfinite().all() and is_inside.all() and has_focal.all()):
        K_px = ", ".join(f"{value:.4g}" for value in (K[0, 0, 0], K[0, 1, 1], K[0, 0, 2], K[0, 1, 2]))
        size = f"{trajectory.width} x {trajectory.height}"
        raise ValueError(f"its intrinsics don't fit images of {size}: focal length and principal point {K_px}")
    times_s = trajectory.times_s
    if times_s is not None and not (times_s.isfinite().all() and (times_s.diff() >= 0).all()):
        raise ValueError("the times of its poses don't increase: export the recording again")
    return trajectory


def _checked_size(images: Sequence[Path]) -> tuple[int, int]:
    """Return the height and width of all images, from their headers."""
    size, seen = image_size(images[0]), set[Path]()
    for image in images:
        if image in seen:
            raise ValueError(f"{image} has two poses: remove one of them")
        seen.add(image)
        if image.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"{image}: frames are {', '.join(IMAGE_SUFFIXES)}: convert it, and name the new file")
        if (own := image_size(image)) != size:
            sizes = f"{own[1]} x {own[0]} pixels, {images[0].name} has {size[1]} x {size[0]}"
            raise ValueError(f"{image}: {sizes}: all frames must have one size")
        if _is_turned(image):
            raise ValueError(
                f"{image} is stored on its side (EXIF orientation): turn the photographs upright, as `mogrify "
                "-auto-orient` does, and compute their cameras again"
            )
    return size


def _is_turned(image: Path) -> bool:
    """Return whether an image is shown in another orientation than it is stored in. Cameras refer to the stored one."""
    with Image.open(image) as opened:
        return opened.format == "JPEG" and opened.getexif().get(EXIF_ORIENTATION, 1) != 1


def _match_video(video: Video, trajectory: Trajectory, clock: TimestampMatching) -> Trajectory:
    """Return the cameras of a video's frames, which are already upright."""
    if trajectory.times_s is None:
        try:
            matched = replace(trajectory.at_steps(video.num_frames), frames=())
        except ValueError as error:
            raise ValueError(f"{video.path}: {error}") from error
    else:
        start_s = float(trajectory.times_s[trajectory.known][0]) + clock.start_s
        matched = trajectory.at([start_s + time_s for time_s in video.times_s], clock.tolerance_s, clock.match)
    if not matched.known.any():
        raise ValueError(f"{video.path}: no frame has a pose within {clock.tolerance_s} s: set `clock.start_s`")
    upright = video.width, video.height
    return matched.resized(*(upright[::-1] if matched.quarter_turns % 2 else upright))


def _link_images(images: Sequence[Path | None], folder: Path, quarter_turns: int) -> None:
    """Link images, numbered in order, or write turned copies. A black image, unknown depth, replaces None."""
    folder.mkdir(parents=True)
    first = next(filter(None, images))
    for number, file in enumerate(images):
        target = folder / f"{number:06d}{(file or first).suffix.lower()}"
        if file is None:
            height, width = image_size(first)
            Image.new("I;16", (height, width) if quarter_turns % 2 else (width, height)).save(target)
        elif quarter_turns % 4:
            with Image.open(file) as image:
                image.transpose(TURNS[quarter_turns % 4]).save(target, quality=95)
        else:
            target.symlink_to(file.resolve())
