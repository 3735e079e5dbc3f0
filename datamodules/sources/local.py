"""Videos of one's own: a folder of scenes with questions, or one video with one question."""

from __future__ import annotations

from pathlib import Path

from datamodules.depth import find_depth
from datamodules.scenes import Question, Scene
from datamodules.sources.annotations import find_cameras, read_layout
from datamodules.sources.base import SceneSource, Split, require_file
from datamodules.video import companion_name
from zoo.benchmarks import Benchmark


class SceneFolder(SceneSource):
    """Videos with questions and optional cameras: `<root>/{train,val,test}.jsonl` and the videos.

    Args:
        root: The folder, see `datamodules.sources.annotations`; cameras: see `datamodules.cameras_file`.
        benchmark: Question types, wording and scorers: a class of `zoo.benchmarks` or of one's own, or `OwnQuestions`,
            which takes the types as settings; null is VSI-Bench.

    Raises:
        FileNotFoundError: In `scenes`: no questions for the split.
        ValueError: In `scenes`: malformed questions.
    """

    def __init__(self, root: str, benchmark: Benchmark | None = None) -> None:
        super().__init__(benchmark)
        self.root = Path(root).expanduser()

    def scenes(self, split: Split) -> list[Scene]:
        """The scenes whose videos exist; the others are in `missing`."""
        require_file(self.root / f"{split}.jsonl", "--data.source.root is its folder")
        scenes, self.missing = read_layout(self.root, f"{split}.jsonl", benchmark=self.benchmark)
        return scenes


class SingleVideo(SceneSource):
    """One video with one question and no ground truth.

    Args:
        video: A video file, or a folder of frames; cameras and depth beside it are used.
        question: The question.
        cameras: A cameras file elsewhere; null is the one beside the video.

    Raises:
        FileNotFoundError: The video or the cameras file is absent.
    """

    def __init__(self, video: str, question: str, cameras: str | None = None) -> None:
        super().__init__()
        self.video = Path(video).expanduser()
        self.cameras = Path(cameras).expanduser() if cameras else None
        self.question = Question("0", "", question)

    def prepare(self) -> None:
        """Checks that the files exist."""
        for path, what in ((self.video, "video file or folder of frames"), (self.cameras, "cameras file")):
            if path is not None and not path.exists():
                raise FileNotFoundError(f"{path}: no such {what}")

    def scenes(self, split: Split) -> list[Scene]:
        """Return the one scene."""
        if split == "train":
            raise ValueError(f"{self.video}: a question without a ground truth can't be trained on: use predict")
        self.prepare()
        cameras = self.cameras or find_cameras(self.video)
        return [Scene(companion_name(self.video), self.video, (self.question,), cameras, find_depth(self.video))]
