"""Scenes with the poses that their datasets come with: ARKitScenes, ScanNet, ScanNet++, 7-Scenes, TUM, nerfstudio."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from datamodules.cameras_file import write_cameras
from datamodules.scenes import Scene
from datamodules.sources.annotations import find_video, read_questions
from datamodules.sources.base import SceneSource, Split, by_type
from datamodules.sources.lock import locked
from datamodules.sources.progress import progress
from datamodules.sources.rooms.writer import SPLITS
from datamodules.trajectories import PoseFormat, Trajectory
from datamodules.trajectories.base import Match
from datamodules.video import Video

TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
# how a file that is not what it should be shows itself
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
VERSION = 1  # of what the settings lead to: raise it with every change to the cameras


@dataclass(frozen=True)
class TimestampMatching:
    """How a video's frames find their poses.

    Args:
        match: "slerp" goes between the poses before and after a frame, "nearest" takes the nearest.
        tolerance_s: a frame whose poses are farther away in time has none.
        start_s: when the video starts, in seconds after the first pose.
    """

    match: Match = "slerp"
    tolerance_s: float = 0.2
    start_s: float = 0.0


class PosedScenes(SceneSource):
    """Raw scenes of a dataset with its own poses, and questions about them.

    The frames are those that lie in the scene's folder, without those that have no pose; or, with `videos`, those
    of a video of the scene, which find their poses by time and may have none. Each scene gets a cameras file and,
    for frames, links in a cache: the raw data stays as it is.

    A scene whose poses can't be read is named on the way and counted as missing; the rest goes on.

    Args:
        root: the folder of the raw scenes, each in `<root>/<scene_name>`.
        poses: how they are written, such as ScanNet.
        questions: the folder with train.jsonl, val.jsonl or test.jsonl in VSI-Bench's format; null is `root`.
        videos: take the videos `<videos>/<dataset>/<scene_name>.mp4` instead of the frames in the scenes' folders.
        clock: how the frames of videos find their poses.
        cache: where cameras and links lie.

    Raises FileNotFoundError where the split's questions are absent, ValueError where they can't be understood.
    """

    def __init__(
        self,
        root: str,
        poses: PoseFormat,
        questions: str | None = None,
        videos: str | None = None,
        clock: TimestampMatching | None = None,
        cache: str = "cache/posed",
    ) -> None:
        super().__init__()
        self.root, self.poses = Path(root).expanduser(), poses
        self.questions = Path(questions).expanduser() if questions else self.root
        self.videos = Path(videos).expanduser() if videos else None
        self.clock = clock or TimestampMatching()
        settings = [VERSION, str(self.root.resolve()), type(poses).__name__, vars(poses)]
        settings += [str(self.videos.resolve()), vars(self.clock)] if self.videos else []
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(cache).expanduser() / key

    def prepare(self) -> None:
        files = [file for split in SPLITS if (file := self.questions / f"{split}.jsonl").is_file()]
        names = {name: None for file in files for name in read_questions(file)}  # a set in order
        there = [name for name in names if (self.root / _scene(name)).is_dir()]
        if all(self._is_current(name) for name in there):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", "another process reads these poses: waiting for it"):
            new = [name for name in there if not self._is_current(name)]
            with progress("reading poses", len(new)) as advance:
                for name in new:
                    try:
                        self._make(name)
                    except UNREADABLE as error:
                        said = str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
                        print(f"{name}: left out, its cameras can't be had: {said}", file=sys.stderr, flush=True)
                    advance()

    def scenes(self, split: Split) -> list[Scene]:
        file = self.questions / f"{split}.jsonl"
        if not file.is_file():
            raise FileNotFoundError(f"{file} is absent: it holds a question a line; `questions` names its folder")
        scenes = []
        self.missing = {}
        for name, questions in read_questions(file).items():
            video = find_video(self.videos or self.folder, name)
            if video is None or not self._is_made(name):
                self.missing[name] = by_type(questions)
                continue
            depth = self.folder / f"{name}.depth"
            scenes.append(Scene(name, video, tuple(questions), self._cameras(name), depth if depth.is_dir() else None))
        return scenes

    def _cameras(self, name: str) -> Path:
        return self.folder / f"{name}.cameras.json"

    def _is_made(self, name: str) -> bool:
        """Whether the scene's cameras are there to the last byte."""
        try:
            with self._cameras(name).open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read() == b"}"
        except OSError:  # absent or empty
            return False

    def _is_current(self, name: str) -> bool:
        """Whether they were made of the files that are there now."""
        stamp = self._stamp(name)
        return self._is_made(name) and stamp.exists() and stamp.read_text() == self._raw_files(name)

    def _stamp(self, name: str) -> Path:
        return self.folder / f"{name}.made_of"

    def _raw_files(self, name: str) -> str:
        """How many files the scene is made of, their size, and when the last one changed."""
        folders = os.walk(self.root / _scene(name), followlinks=True)
        found = [file.stat() for folder, _, names in folders for own in names if (file := Path(folder, own)).is_file()]
        if self.videos is not None and (video := find_video(self.videos, name)) is not None:
            found.append(video.stat())
        newest = max((each.st_mtime_ns for each in found), default=0)
        return f"{len(found)} {sum(each.st_size for each in found)} {newest}"

    def _make(self, name: str) -> None:
        """Writes what belongs to a scene, its cameras last: they say that all is there."""
        self._cameras(name).unlink(missing_ok=True)  # those of files that have changed
        raw, made_of = self.root / _scene(name), self._raw_files(name)
        if self.videos is None:
            self._cameras(name).parent.mkdir(parents=True, exist_ok=True)
            trajectory = self._place_frames(name, _checked(self.poses.read(raw)))
        elif video := find_video(self.videos, name):
            self._cameras(name).parent.mkdir(parents=True, exist_ok=True)
            trajectory = _of_video(Video(video), _checked(self.poses.read_track(raw)), self.clock)
        else:
            return  # counted where the scenes are listed
        if unknown := int((~trajectory.known).sum()):
            print(f"{name}: {unknown} of {len(trajectory)} frames have no pose", file=sys.stderr, flush=True)
        self._stamp(name).write_text(made_of)
        partial = self._cameras(name).with_suffix(".partial")
        write_cameras(
            partial, trajectory.world_to_camera, trajectory.K_px, width=trajectory.width, height=trajectory.height,
            times_s=None if trajectory.times_s is None else trajectory.times_s.tolist(),
        )  # fmt: skip
        partial.replace(self._cameras(name))

    def _place_frames(self, name: str, trajectory: Trajectory) -> Trajectory:
        """Links to the frames that have a pose, upright; the cameras that belong to them."""
        posed = trajectory.only(trajectory.known)
        if unknown := len(trajectory) - len(posed):
            said = f"{name}: {unknown} of {len(trajectory)} frames have no pose, and are left out"
            print(said, file=sys.stderr, flush=True)
        _place(posed.frames, self.folder / name, posed.quarter_turns)
        if posed.depth:
            _place(posed.depth, self.folder / f"{name}.depth", posed.quarter_turns)
        return posed.turned()


def _checked(trajectory: Trajectory) -> Trajectory:
    if not trajectory.known.any():
        raise ValueError("none of its pictures has a pose that is finite and near in time")
    K = trajectory.K_px[trajectory.known]
    inside = (K[:, :2, 2] > 0) & (K[:, :2, 2] < K.new_tensor([trajectory.width, trajectory.height]))
    if not (K.isfinite().all() and inside.all()):
        raise ValueError(
            f"its intrinsics are not those of pictures of {trajectory.width} x {trajectory.height}: focal length and "
            f"principal point {K[0, 0, 0]:.4g}, {K[0, 1, 1]:.4g}, {K[0, 0, 2]:.4g}, {K[0, 1, 2]:.4g}"
        )
    return trajectory


def _of_video(video: Video, trajectory: Trajectory, clock: TimestampMatching) -> Trajectory:
    """The cameras of a video's frames, which are upright already."""
    if trajectory.times_s is None:
        raise ValueError("its poses have no times to match a video with: take its frames (`videos: null`)")
    start_s = float(trajectory.times_s[trajectory.known][0]) + clock.start_s
    placed = trajectory.at([start_s + time_s for time_s in video.times_s], clock.tolerance_s, clock.match)
    if not placed.known.any():
        raise ValueError(f"{video.path}: no frame has a pose within {clock.tolerance_s} s: set `clock.start_s`")
    return placed.turned().resized(video.width, video.height)


def _place(pictures: tuple[Path, ...], folder: Path, quarter_turns: int) -> None:
    """Links to pictures, numbered in their order, or turned copies."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that ended before it wrote the cameras
    folder.mkdir()
    for number, picture in enumerate(pictures):
        target = folder / f"{number:06d}{picture.suffix.lower()}"
        if quarter_turns % 4:
            with Image.open(picture) as image:
                image.transpose(TURNS[quarter_turns % 4]).save(target, quality=95)
        else:
            target.symlink_to(picture.resolve())


def _scene(name: str) -> str:
    """The scene's own name, without its dataset's."""
    return name.split("/", 1)[1]
