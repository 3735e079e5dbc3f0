"""python main.py import-cameras: make a scene of a capture with known cameras.

    python main.py import-cameras captures/kitchen data/mine/homes/kitchen
    python main.py predict --config prope.yaml --data.video data/mine/homes/kitchen --data.question "How large?"

The command reads the camera of each photograph or frame in a capture and writes

    <scene>/               links to the frames that have a camera, in order; with --video, a link to the video
    <scene>.cameras.json   their cameras
    <scene>.path.png       the camera path from above: check that it is the path that was walked

The format is detected by its files:

    COLMAP           sparse/0/cameras.txt and images.txt, images/; in text format
    Nerfstudio       transforms.json, also of Polycam and other apps, converted by ns-process-data
    Record3D         an unzipped .r3d recording of an iPhone or iPad, or an export as EXR and JPG
    ScanNet          color/, pose/, intrinsic/, as exported by SensReader
    ScanNetPlusPlus, ARKitScenes, SevenScenes, TUM    as the datasets are distributed
    ViPE             pose/*.npz of a video, as in Cambrian-P-Data; needs --video and --poses.focal

For all scenes of a dataset, see import-cameras --dataset arkitscenes --help.

A warning is printed if the images fit the cameras better in another convention, such as camera-to-world. COLMAP's unit
of length is arbitrary: measure one distance, and give --meters_per_unit.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Literal

from commands.parser import build, command_parser, parse
from commands.scene_commands import SceneCounts
from datamodules.cameras_file import read_cameras
from datamodules.samplers import SceneView
from datamodules.sources.annotations import CAMERAS, SceneIndex
from datamodules.sources.base import map_in_processes
from datamodules.trajectories import FORMATS, ARKitScenes, PoseFormat, ScanNet, ScanNetPlusPlus, ViPE
from datamodules.trajectories.base import UNREADABLE
from datamodules.trajectories.conventions import find_better_convention
from datamodules.trajectories.scene_files import TimestampMatching, write_scene
from datamodules.video import VIDEO_SUFFIXES, Video, even_steps
from evaluation.drawings import camera_map, save_picture
from zoo.cameras.poses import invert_se3
from zoo.cpu import available_cores
from zoo.errors import InputError
from zoo.files.atomic_io import partial_folder, try_lock, write_output
from zoo.files.ownership import move_new, partial_of, refuse_existing, remove_own, remove_partial
from zoo.progress import progress

PICTURE = ".path.png"
SHOWN = 12  # number of cameras that are drawn with a frustum and a number


def import_cameras(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `import-cameras`.

    Raises:
        InputError: The capture is damaged or has an unknown format, or the scene exists.
    """
    if any(word.partition("=")[0] == "--dataset" for word in arguments):
        import_dataset(arguments)
        return
    parser = command_parser("import-cameras", __doc__)
    parser.add_argument("capture", type=str, help="folder of the capture")
    parser.add_argument("scene", type=str, help="path of the new scene, such as data/mine/homes/kitchen")
    poses_help = "format, such as COLMAP; null detects it by its files"
    parser.add_argument("--poses", type=PoseFormat | None, default=None, help=poses_help)
    parser.add_argument("--meters_per_unit", type=float, default=1.0, help="length of the capture's unit in meters")
    video_help = "a video whose frames are matched with poses by time; null takes the capture's frames"
    parser.add_argument("--video", type=str | None, default=None, help=video_help)
    parser.add_class_arguments(TimestampMatching, "clock")
    settings = build(parser, parse(parser, arguments))
    capture, scene = Path(settings.capture).expanduser(), Path(settings.scene).expanduser()
    video = Path(settings.video).expanduser() if settings.video else None
    if not 0 < settings.meters_per_unit < math.inf:
        raise InputError(f"--meters_per_unit {settings.meters_per_unit}: a length is positive and finite")
    refuse_existing([scene])
    media = f"{scene.name}{video.suffix if video else ''}"
    made = [media, f"{scene.name}.depth", f"{scene.name}{PICTURE}", f"{scene.name}{CAMERAS}"]  # the cameras come last
    refuse_existing(scene.with_name(name) for name in made)

    # Read the capture, write the scene beside its place, draw the cameras that `predict` will read, and move all.
    try:
        poses = settings.poses or _detect_format(capture)
        read = poses.read(capture) if video is None else poses.read_track(capture)
        trajectory = read.scaled(settings.meters_per_unit)
        with partial_folder(scene) as folder:
            write_scene(folder, scene.name, trajectory, None if video is None else Video(video), settings.clock)
            if video is not None:
                (folder / media).symlink_to(video.resolve())
            opened = Video(folder / media)
            cameras = folder / f"{scene.name}{CAMERAS}"
            world_to_camera, K = read_cameras(cameras, opened.num_frames, opened.height, opened.width)
            known = world_to_camera.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
            shown = [known[i] for i in even_steps(len(known), SHOWN)]
            drawn = camera_map(SceneView(opened, world_to_camera, K), shown, scene.name)
            save_picture(drawn, folder / f"{scene.name}{PICTURE}")
            better = find_better_convention(opened, world_to_camera, K)
            for name in made:
                if os.path.lexists(folder / name):
                    move_new(folder / name, scene.with_name(name))
    except (OSError, ValueError) as error:
        raise InputError(error) from error
    length = float(invert_se3(world_to_camera[known])[:, :3, 3].diff(dim=0).norm(dim=-1).sum())
    is_metric = poses.is_metric or settings.meters_per_unit != 1
    unit = "m" if is_metric else "units of length: measure one in meters, and give --meters_per_unit"
    frames, picture = (scene.with_name(name) for name in (media, f"{scene.name}{PICTURE}"))
    print(f"{frames}: {len(known)} cameras read as {type(poses).__name__}, {picture} shows them")
    print(f"the camera path is {length:.4g} {unit}")
    if better:
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


# ---- import-cameras --dataset ---------------------------------------------------------------------------------------

ALL_SCENES = """python main.py import-cameras --dataset: import the cameras and depth of all scenes of a dataset.

    python main.py import-cameras --dataset scannet raw/scannet/scans --output data/cameras
    python main.py import-cameras --dataset arkitscenes raw/arkitscenes --output data/cameras --videos data/videos

The command reads the raw scenes in a folder, at most three folders deep. For each scene it writes

    <output>/<dataset>/<scene>.cameras.json   its cameras
    <output>/<dataset>/<scene>.depth/         links to its depth images, if the dataset has them
    <output>/<dataset>/<scene>/               links to its frames; none with --videos

With --videos, the cameras belong to the frames of `<videos>/**/<scene>.mp4`. For ARKitScenes they are matched by time,
and --poses ARKitScenes --poses.video_depth true also matches depth. For ScanNet and for ScanNet++'s iPhone videos they
are matched frame by frame (or every k-th frame). ViPE's poses name their frames, and the other frames get no camera.
Their unit of length differs from video to video. They lack intrinsics: --poses ViPE --poses.focal 1.2 assumes some.

Training and tests find the cameras by --data.source.cameras <output>, whatever folders a file of conversations writes
before a scene's name. Cameras beside the videos are found too.

The cameras of some scenes are checked against their images, see check-cameras. Complete scenes are kept, so that an
interrupted command resumes. Scenes that fail are skipped, printed, and listed in <output>/<dataset>.failed.txt. The
next call tries them again.
"""

Dataset = Literal["arkitscenes", "scannet", "scannetpp", "vipe"]
DATASETS: dict[str, type[PoseFormat]] = {
    "arkitscenes": ARKitScenes,
    "scannet": ScanNet,
    "scannetpp": ScanNetPlusPlus,
    "vipe": ViPE,
}
DEPTH = 3  # maximum number of folders from the root to a scene, as in raw/Training/41069025
NO_VIDEO = "without a video"
FAILED = "# import-cameras: scenes without cameras, and why\n"  # the start of the list


def import_dataset(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `import-cameras`, with `--dataset`.

    Raises:
        InputError: There are no scenes, or some have failed. The others are written before that.
    """
    parser = command_parser("import-cameras --dataset", ALL_SCENES)
    parser.add_argument("root", type=str, help="folder of the raw scenes, or one above it")
    parser.add_argument("--dataset", type=Dataset, required=True, help=f"one of {', '.join(DATASETS)}")
    parser.add_argument("--output", type=str, required=True, help="folder of the cameras")
    videos_help = "folder of videos that are named after the scenes; null takes the dataset's own frames"
    parser.add_argument("--videos", type=str | None, default=None, help=videos_help)
    parser.add_argument("--poses", type=PoseFormat | None, default=None, help="format; null uses the dataset's")
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes; by default one per core")
    parser.add_argument(
        "--check", type=int, default=10, help="number of scenes whose cameras are checked against the images"
    )
    parser.add_class_arguments(TimestampMatching, "clock")
    settings = build(parser, parse(parser, arguments))
    if settings.workers < 1:
        raise InputError(f"--workers {settings.workers}: at least 1")
    root, output = Path(settings.root).expanduser(), Path(settings.output).expanduser()
    poses = settings.poses or DATASETS[settings.dataset]()
    scenes = find_scenes(root, poses.marker)
    if not scenes:
        looked = f"there or up to {DEPTH} folders below"
        raise InputError(f"{root}: no scene of {settings.dataset} {looked}: each has {poses.marker}")
    videos = find_videos(Path(settings.videos).expanduser()) if settings.videos else None
    if (lock := try_lock(output / f".{settings.dataset}.lock")) is None:
        raise InputError(f"another process imports {settings.dataset} to {output}: wait for it")
    (output / settings.dataset).mkdir(parents=True, exist_ok=True)
    make = partial(import_scene, poses=poses, output=output / settings.dataset, clock=settings.clock)
    paths = (
        [videos.find(f"{settings.dataset}/{raw.parent.name}/{raw.name}") for raw in scenes] if videos else repeat(None)
    )
    known = [(raw, path) for raw, path in zip(scenes, paths, strict=False) if path or not videos]

    # The scenes, several at once.
    counts, failed, made = SceneCounts(), [], []
    outcomes = map_in_processes(make, known, min(settings.workers, len(known)))
    for raw, video in progress(known, f"import-cameras {settings.dataset}", "scenes"):
        outcome = next(outcomes)
        if outcome not in (SceneCounts.MADE, SceneCounts.KEPT):
            outcome = f"{raw.name}: {outcome}"
            failed.append(outcome)
        elif outcome == SceneCounts.MADE:
            made.append((raw.name, video))
        counts.add(outcome)
    listing = output / f"{settings.dataset}.failed.txt"
    remove_own(listing, FAILED.encode())
    if failed:
        write_output(listing, FAILED + "".join(f"{line}\n" for line in failed), FAILED)
    lock.close()
    skipped = f", {len(scenes) - len(known)} {NO_VIDEO}" if videos else ""
    print(f"import-cameras: {len(scenes)} scenes of {settings.dataset}: {counts}{skipped}; see {output}/")
    if videos and not known:
        raise InputError(f"{settings.videos}: no video is named after a scene, such as {scenes[0].name}.mp4")
    checked = [made[i] for i in even_steps(len(made), settings.check)]
    for name, video in progress(checked, "check-cameras", "scenes"):
        _check(output / settings.dataset, name, video)
    counts.refuse_failed(f"cameras, listed in {listing}")


def find_scenes(root: Path, marker: str) -> list[Path]:
    """Return the folders with the files of a format, sorted by name.

    Args:
        root: Where to search, up to three folders deep. Folders inside a scene are not searched.
        marker: Pattern of a file of each scene.

    Raises:
        InputError: The root is missing, or two scenes share a name.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    scenes: dict[str, Path] = {}
    for scene in _scenes_below(root, marker, DEPTH):
        if scenes.setdefault(scene.name, scene) != scene:
            raise InputError(f"{scenes[scene.name]} and {scene} share a name: import one of their folders at a time")
    return [scenes[name] for name in sorted(scenes)]


def _scenes_below(folder: Path, marker: str, depth: int) -> Iterator[Path]:
    if any(folder.glob(marker)):
        yield folder
    elif depth:
        for below in folder.iterdir():
            if below.is_dir() and below.name[0] != ".":
                yield from _scenes_below(below, marker, depth - 1)


def find_videos(root: Path) -> SceneIndex:
    """Return the videos in a folder and its subfolders.

    Raises:
        InputError: The folder is missing.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    return SceneIndex(file for file in root.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES)


def _check(folder: Path, name: str, video: Path | None) -> None:
    """Warn about a scene whose images fit its cameras better in another convention."""
    opened = Video(video or folder / name)
    cameras = read_cameras(folder / f"{name}{CAMERAS}", opened.num_frames, opened.height, opened.width)
    if better := find_better_convention(opened, *cameras):
        print(f"warning: {name}: the images don't fit these cameras: {better}", file=sys.stderr)


def import_scene(raw: Path, video: Path | None, *, poses: PoseFormat, output: Path, clock: TimestampMatching) -> str:
    """Write the files of a scene, unless they are complete.

    They are written to another folder and then moved, with the cameras last. Nothing in the output is removed.

    Args:
        raw: Folder of the raw scene.
        video: The video whose frames get cameras. None uses the scene's frames.
        poses: Format of the scene.
        output: Folder of the dataset's cameras.
        clock: How video frames are matched with poses.

    Returns:
        An outcome for `SceneCounts`.
    """
    name = raw.name
    if (output / f"{name}{CAMERAS}").is_file():
        return SceneCounts.KEPT
    unfinished = partial_of(output / name)
    try:
        if not (unfinished / f"{name}{CAMERAS}").is_file():
            remove_partial(unfinished)
            unfinished.mkdir()
            trajectory = poses.read(raw) if video is None else poses.read_track(raw)
            write_scene(unfinished, name, trajectory, None if video is None else Video(video), clock)
        for suffix in ("", ".depth", CAMERAS):
            if os.path.lexists(unfinished / f"{name}{suffix}"):
                move_new(unfinished / f"{name}{suffix}", output / f"{name}{suffix}")
        remove_partial(unfinished)
    except UNREADABLE as error:
        return str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
    return SceneCounts.MADE
