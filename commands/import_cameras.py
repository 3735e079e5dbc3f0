"""python main.py import-cameras: make a scene of a capture with known cameras.

    python main.py import-cameras captures/kitchen data/mine/homes/kitchen
    python main.py predict --config prope.yaml --data.video data/mine/homes/kitchen --data.question "How large?"

reads the camera of each photograph or frame in a capture and writes

    <scene>/               links to the frames that have a camera, in order; with --video a link to the video instead
    <scene>.cameras.json   their cameras
    <scene>.path.png       the camera path from above: look whether it is the one that was walked

The format is detected by its files:

    COLMAP           sparse/0/cameras.txt and images.txt, images/; in text format
    Nerfstudio       transforms.json, also of Polycam and other apps by way of ns-process-data
    Record3D         an unzipped .r3d recording of an iPhone or iPad, or an export as EXR and JPG
    ScanNet          color/, pose/, intrinsic/, as SensReader exports them
    ScanNetPlusPlus, ARKitScenes, SevenScenes, TUM    as the datasets come

All scenes of a dataset: import-cameras --dataset arkitscenes --help.

Where the images fit the cameras better in another convention, such as camera-to-world, a warning says so.
COLMAP does not know how long a meter is: measure one distance, and give --meters_per_unit.
"""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

from callbacks.camera_map import camera_map
from commands.import_dataset import import_dataset
from commands.parser import OneLineParser
from datamodules.cameras_file import read_cameras
from datamodules.samplers import SceneView
from datamodules.trajectories import FORMATS, PoseFormat
from datamodules.trajectories.conventions import find_better_convention
from datamodules.trajectories.scene_files import TimestampMatching, write_scene
from datamodules.video import Video, even_steps
from zoo.cameras.poses import invert_se3
from zoo.errors import InputError

SHOWN = 12  # cameras of the picture with a frustum and a number


def import_cameras(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `import-cameras`.

    Raises:
        InputError: The capture is damaged or of an unknown format, or the scene exists.
    """
    if any(word.partition("=")[0] == "--dataset" for word in arguments):
        import_dataset(arguments)
        return
    parser = OneLineParser(prog="main.py import-cameras", description=__doc__)
    parser.add_argument("capture", type=str, help="folder of the capture")
    parser.add_argument("scene", type=str, help="path of the new scene, such as data/mine/homes/kitchen")
    poses_help = "format, such as COLMAP; null detects it by its files"
    parser.add_argument("--poses", type=PoseFormat | None, default=None, help=poses_help)
    parser.add_argument("--meters_per_unit", type=float, default=1.0, help="length of the capture's unit in meters")
    video_help = "a video whose frames are matched with poses by time; null takes the capture's frames"
    parser.add_argument("--video", type=str | None, default=None, help=video_help)
    parser.add_class_arguments(TimestampMatching, "clock")
    settings = parser.instantiate_classes(parser.parse_args(arguments))
    capture, scene = Path(settings.capture).expanduser(), Path(settings.scene).expanduser()
    video = Path(settings.video).expanduser() if settings.video else None
    if not 0 < settings.meters_per_unit < math.inf:
        raise InputError(f"--meters_per_unit {settings.meters_per_unit}: a length is positive and finite")
    frames, cameras = Path(f"{scene}{video.suffix if video else ''}"), Path(f"{scene}.cameras.json")
    depth, picture = Path(f"{scene}.depth"), Path(f"{scene}.path.png")
    if existing := next((path for path in (frames, cameras, depth, picture) if path.exists()), None):
        raise InputError(f"{existing} exists: remove it, or name another scene")

    # 1. Read the capture, and write the scene.
    try:
        poses = settings.poses or _detect_format(capture)
        trajectory = poses.read(capture) if video is None else poses.read_track(capture)
        scene.parent.mkdir(parents=True, exist_ok=True)
        scaled = trajectory.scaled(settings.meters_per_unit)
        write_scene(scene.parent, scene.name, scaled, None if video is None else Video(video), settings.clock)
        if video is not None:
            frames.symlink_to(video.resolve())

        # 2. Draw what `predict` will read.
        opened = Video(frames)
        world_to_camera, K = read_cameras(cameras, opened.num_frames, opened.height, opened.width)
    except (OSError, ValueError) as error:
        for made in (frames, cameras, depth):  # none of them was there before
            if made.is_dir() and not made.is_symlink():
                shutil.rmtree(made)
            else:
                made.unlink(missing_ok=True)
        raise InputError(error) from error
    known = world_to_camera.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
    shown = [known[i] for i in even_steps(len(known), SHOWN)]
    camera_map(SceneView(opened, world_to_camera, K), shown, scene.name).save(picture)
    length = float(invert_se3(world_to_camera[known])[:, :3, 3].diff(dim=0).norm(dim=-1).sum())
    is_metric = poses.is_metric or settings.meters_per_unit != 1
    unit = "m" if is_metric else "units of length: measure one in meters, and give --meters_per_unit"
    print(f"{frames}: {len(known)} cameras read as {type(poses).__name__}, {picture} shows them")
    print(f"the camera path is {length:.4g} {unit}")
    if better := find_better_convention(opened, world_to_camera, K):
        print(f"warning: the images don't fit these cameras: {better}; see check-cameras {frames}", file=sys.stderr)


def _detect_format(capture: Path) -> PoseFormat:
    """Return the one format whose files are in the folder."""
    if not capture.is_dir():
        raise InputError(f"{capture}: no such folder")
    found = [kind for kind in FORMATS if any(capture.glob(kind.marker))]
    if len(found) != 1:
        what = " and ".join(kind.__name__ for kind in found) or "none of the known formats"
        markers = ", ".join(f"{kind.__name__} ({kind.marker})" for kind in found or FORMATS)
        raise InputError(f"{capture} has the files of {what}: name it with --poses, one of {markers}")
    return found[0]()
