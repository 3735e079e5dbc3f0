"""Scenes with their dataset's poses, in the formats of `datamodules.trajectories`, such as ScanNet's."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tqdm import tqdm

from datamodules.scenes import Scene
from datamodules.sources.annotations import find_video, read_questions
from datamodules.sources.base import SPLITS, SceneSource, Split, by_type, locked, require_file
from datamodules.trajectories import PoseFormat
from datamodules.trajectories.base import UNREADABLE
from datamodules.trajectories.scene_files import TimestampMatching, write_scene
from datamodules.video import Video
from zoo.benchmarks import Benchmark
from zoo.files.atomic_io import write_whole
from zoo.files.cache import cache_folder
from zoo.files.fingerprint import fingerprint
from zoo.files.ownership import remove_marked
from zoo.progress import progress

VERSION = 2  # increase it with every change to the cameras


class PosedScenes(SceneSource):
    """Raw scenes of a dataset with its own poses, and questions about them.

    By default the frames are the images in the scene's folder that have a pose. With `videos`, they are the frames of
    the scene's video, and poses are matched by time. Cameras files and links to frames are written to a cache. The raw
    data is not modified. A scene with unreadable poses is reported and counts as missing.

    Args:
        root: Folder of the raw scenes, each in `<root>/<scene_name>`.
        poses: Format of the poses, such as ScanNet.
        questions: Folder with train.jsonl, val.jsonl or test.jsonl in VSI-Bench's format. null uses `root`.
        videos: Use the videos `<videos>/<dataset>/<scene_name>.mp4` instead of the images in the scenes' folders.
        clock: How video frames are matched with poses.
        cache: Folder of cameras files and links.
        benchmark: Question types, wording and scorers, see `SceneFolder`. null uses VSI-Bench.

    Raises:
        FileNotFoundError: Raised in `scenes`: the split has no question file.
        ValueError: Raised in `scenes`: a question is malformed.
    """

    def __init__(
        self,
        root: str,
        poses: PoseFormat,
        questions: str | None = None,
        videos: str | None = None,
        clock: TimestampMatching | None = None,
        cache: str = "cache/posed",
        benchmark: Benchmark | None = None,
    ) -> None:
        super().__init__(benchmark)
        self.root, self.poses = Path(root).expanduser(), poses
        self.questions = Path(questions).expanduser() if questions else self.root
        self.videos = Path(videos).expanduser() if videos else None
        self.clock = clock or TimestampMatching()
        settings = [VERSION, str(self.root.resolve()), type(poses).__name__, vars(poses)]
        settings += [str(self.videos.resolve()), vars(self.clock)] if self.videos else []
        self.folder = cache_folder(cache) / fingerprint(settings)[:16]

    def prepare(self) -> None:
        """Write the cameras of new and changed scenes."""
        files = [file for split in SPLITS if (file := self.questions / f"{split}.jsonl").is_file()]
        names = dict.fromkeys(name for file in files for name in read_questions(file, self.benchmark))  # unique names
        present = [name for name in names if os.path.isdir(self.root / _scene_name(name))]
        if all(self._is_current(name) for name in present):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", "another process reads these poses: waiting for it"):
            outdated = [name for name in present if not self._is_current(name)]
            for name in progress(outdated, "reading poses", "scenes"):
                try:
                    self._make(name)
                except UNREADABLE as error:
                    message = str(error) if isinstance(error, (OSError, ValueError)) else repr(error)
                    tqdm.write(f"{name}: skipped, its cameras can't be read: {message}", file=sys.stderr)

    def scenes(self, split: Split) -> list[Scene]:
        """Return the scenes with a video and cameras. The others are in `missing`."""
        file = self.questions / f"{split}.jsonl"
        require_file(file, "it holds one question per line; `questions` names its folder")
        scenes = []
        self.missing = {}
        for name, questions in read_questions(file, self.benchmark).items():
            video = find_video(self.videos or self.folder, name)
            if video is None or not self._cameras(name).is_file():
                self.missing[name] = by_type(questions)
                continue
            depth = self.folder / f"{name}.depth"
            scenes.append(Scene(name, video, tuple(questions), self._cameras(name), depth if depth.is_dir() else None))
        return scenes

    def _cameras(self, name: str) -> Path:
        return self.folder / f"{name}.cameras.json"

    def _stamp(self, name: str) -> Path:
        """Return the file with the state of the raw files from which the others were made. It is written first."""
        return self.folder / f"{name}.made_of"

    def _is_current(self, name: str) -> bool:
        """Return whether the cameras were made from the present raw files."""
        stamp = self._stamp(name)
        return self._cameras(name).is_file() and stamp.exists() and stamp.read_text() == self._raw_state(name)

    def _raw_state(self, name: str) -> str:
        """Return number, total size and newest modification time of the scene's raw files."""
        walk = os.walk(self.root / _scene_name(name), followlinks=True)
        files = [file for folder, _, names in walk for entry in names if (file := Path(folder, entry)).is_file()]
        if self.videos is not None and (video := find_video(self.videos, name)) is not None:
            files.append(video)
        stats = [file.stat() for file in files]
        newest = max((stat.st_mtime_ns for stat in stats), default=0)
        return f"{len(stats)} {sum(stat.st_size for stat in stats)} {newest}"

    def _make(self, name: str) -> None:
        """Write the files of a scene. The cameras come last and mark the scene as complete."""
        cameras, raw, state = self._cameras(name), self.root / _scene_name(name), self._raw_state(name)
        # those made from an earlier state of the raw files
        remove_marked(self._stamp(name), (cameras, self.folder / name, self.folder / f"{name}.depth"))
        video = find_video(self.videos, name) if self.videos else None
        if self.videos is not None and video is None:
            return  # `scenes` counts it as missing
        trajectory = self.poses.read(raw) if video is None else self.poses.read_track(raw)
        write_whole(self._stamp(name), state)
        write_scene(self.folder, name, trajectory, None if video is None else Video(video), self.clock)


def _scene_name(name: str) -> str:
    """Return the scene's name without its dataset."""
    return name.split("/", 1)[1]
