"""python main.py check-cameras: check whether cameras fit the images of a video.

    python main.py check-cameras data/mine/homes/kitchen
    python main.py check-cameras clip.mp4 clip.cameras.json

The command draws the camera path, and prints speed, rotation, jumps and intrinsics. It matches points between frames
and evaluates the four usual conventions of a pose: world-to-camera or camera-to-world, with OpenCV or OpenGL axes. For
each it prints the distance of the points from their epipolar lines, the share that lies in front of both cameras, and
the share that satisfies both ("explained"). Epipolar lines do not determine the sign of a pure translation, but the
points in front do. Without enough motion or texture, the convention can't be determined.

Points are matched by SIFT if OpenCV is installed (pip install opencv-python-headless). Otherwise the patches around
corners are matched, which is enough for the frames of a video.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from commands.parser import command_parser, parse
from datamodules.cameras_file import read_cameras, read_times
from datamodules.samplers import SceneView
from datamodules.sources.annotations import find_cameras
from datamodules.trajectories.conventions import (
    GIVEN,
    Fit,
    describe_better,
    fitting_conventions,
    match_frames,
    measure_conventions,
)
from datamodules.video import Video, companion_name, even_steps, media_path
from evaluation.drawings import camera_map, save_picture
from zoo.cameras.poses import invert_se3, pose_distance
from zoo.errors import InputError

SHOWN = 12  # number of cameras that are drawn with a frustum and a number
JUMP = 10  # a jump is a step above this many times the median
LISTED = 5  # number of jumps to list
FIELD_OF_VIEW = (25.0, 120.0)  # usual range in degrees, without fisheye lenses
MAX_OFFSET = 0.1  # usual distance of the principal point from the center, as a share of the size


def check_cameras(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `check-cameras`.

    Raises:
        InputError: A file is missing or damaged, or the cameras don't explain the images.
    """
    parser = command_parser("check-cameras", __doc__)
    parser.add_argument("video", type=str, help="a video file or a folder of frames")
    parser.add_argument(
        "cameras", type=str | None, nargs="?", default=None, help="a cameras.json; by default the one beside the video"
    )
    parser.add_argument(
        "--picture", type=str | None, default=None, help="the image file; null uses <video>.path.png beside the cameras"
    )
    settings = parse(parser, arguments)
    path = media_path(settings.video)
    if not path.exists():
        raise InputError(f"{path}: no such video file or folder of frames")
    file = Path(settings.cameras).expanduser() if settings.cameras else find_cameras(path)
    if file is None:
        raise InputError(f"{path}: no {companion_name(path)}.cameras.json beside it: name the cameras after the video")
    try:
        video = Video(path)
        world_to_camera, K = read_cameras(file, video.num_frames, video.height, video.width)
        times_s = read_times(file, video.num_frames) or video.times_s
    except (OSError, ValueError) as error:
        raise InputError(error) from error

    # 1. The path.
    known = world_to_camera.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
    picture = Path(settings.picture or file.with_name(f"{companion_name(path)}.path.png"))
    shown = [known[i] for i in even_steps(len(known), SHOWN)]
    try:
        drawn = camera_map(SceneView(video, world_to_camera, K), shown, companion_name(path))
        save_picture(drawn, picture, option="--picture")
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"--picture {picture}: it can't be written: {error}") from error
    size = f"{video.num_frames} frames of {video.width} x {video.height}"
    print(f"{path}: {size}, {len(known)} with a camera; {picture} shows their path")
    print("\n".join([*describe_path(known, world_to_camera[known], times_s), *describe_intrinsics(K[known])]))

    # 2. The images.
    pairs = match_frames(video, known)
    if not pairs:
        print("images    can't tell: no two frames have enough points in common; is there texture, and motion?")
        return
    print(f"images    {sum(len(pair.points_a) for pair in pairs)} points in {len(pairs)} pairs of frames\n")
    fits = measure_conventions(pairs, world_to_camera, K, video.width, video.height)
    print(_table(fits))
    fitting = fitting_conventions(fits)
    if not fitting:
        raise InputError(
            f"{file}: no convention explains the images: are the cameras of another video, shifted in time, of frames "
            "that were cropped or turned, or distorted?"
        )
    if GIVEN not in fitting:
        raise InputError(f"{file}: not world-to-camera with OpenCV axes: {describe_better(fits)}")
    if len(fitting) > 1:
        print(f"can't tell {' from '.join(fitting)}: the camera moves in a line, or hardly")
    else:
        print("the images fit these cameras")


def describe_path(frames: list[int], world_to_camera: Float[Tensor, "N 4 4"], times_s: list[float]) -> list[str]:
    """Describe length, speed, rotation and jumps of a camera path.

    Args:
        frames: The frames with a camera, in order.
        world_to_camera: Poses of these frames.
        times_s: Timestamp of each frame of the video.
    """
    centers = invert_se3(world_to_camera)[:, :3, 3]
    extent = " x ".join(f"{side:.3g}" for side in (centers.amax(0) - centers.amin(0)).tolist())
    angles, steps = pose_distance(world_to_camera[:-1], world_to_camera[1:])
    lines = [f"path      {float(steps.sum()):.4g} m long, within {extent} m"]
    if len(frames) < 2:
        return lines
    times = torch.tensor([times_s[frame] for frame in frames], dtype=torch.float64)
    seconds = times.diff().clamp_min(1e-6)
    for name, unit, rates in (("speed", "m/s", steps / seconds), ("rotation", "deg/s", angles.rad2deg() / seconds)):
        fastest = f"{float(rates.max()):.3g} at most, at frame {frames[int(rates.argmax())]}"
        lines.append(f"{name:<9} {float(rates.median()):.3g} {unit} in the median, {fastest}")
    rates = steps / seconds
    jumps = (rates > JUMP * rates.median().clamp_min(1e-6)).nonzero().flatten().tolist()
    listed = ", ".join(f"{frames[i]} to {frames[i + 1]} ({float(steps[i]):.3g} m)" for i in jumps[:LISTED])
    lines.append(
        f"jumps     {len(jumps) or 'no'} steps above {JUMP} times the median speed{': ' if jumps else ''}{listed}"
    )
    return lines


def describe_intrinsics(K_normalized: Float[Tensor, "N 3 3"]) -> list[str]:
    """Describe intrinsics relative to the size of the frames, and note unusual values."""
    K = K_normalized.double().mean(0)
    x, y = (float(2 * torch.atan(0.5 / K[axis, axis]).rad2deg()) for axis in (0, 1))
    offset = [float(K[axis, 2]) for axis in (0, 1)]
    changes = float((K_normalized - K).abs().max())
    center = " and ".join(f"{share:+.1%}" for share in offset)
    same = "one for all frames" if changes < 1e-6 else f"changes by {changes:.2g}"
    lines = [f"K         field of view {x:.1f} x {y:.1f} degrees, principal point {center} off center, {same}"]
    if not all(FIELD_OF_VIEW[0] < angle < FIELD_OF_VIEW[1] for angle in (x, y)) or max(map(abs, offset)) > MAX_OFFSET:
        lines.append("          unusual: is K for frames of another size, or turned by a quarter?")
    return lines


def _table(fits: dict[str, Fit]) -> str:
    rows = [f"{'convention':<30}{'error':>10}{'in front':>10}{'explained':>11}"]
    for name, fit in fits.items():
        given = "  as read" if name == GIVEN else ""
        rows.append(f"{name:<30}{fit.error_px:>7.2f} px{fit.in_front:>10.0%}{fit.explained:>11.0%}{given}")
    return "\n".join([*rows, ""])
