"""One question about one video, for `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.scenes import Question, Scene
from datamodules.sources.annotations import find_cameras
from datamodules.sources.base import SceneSource, Split


class SingleVideo(SceneSource):
    """One video with one question and no ground truth.

    Args:
        video: a video file, or a folder of frames; `<name>.cameras.json` beside it is used.
        question: any question, without its options.
        question_type: one of the benchmark's, or empty for a question of the user's own.
        options: for multiple choice, such as ["A. left", "B. right"].
        cameras: a cameras file in another place.

    Raises:
        FileNotFoundError: the video or the cameras file is absent.
    """

    def __init__(
        self,
        video: str,
        question: str,
        question_type: str = "",
        options: Sequence[str] = (),
        cameras: str | None = None,
    ) -> None:
        super().__init__()
        self.video = Path(video).expanduser()
        self.cameras = Path(cameras).expanduser() if cameras else None
        self.question = Question("0", question_type, question, options=tuple(options))

    def prepare(self) -> None:
        """Check that the files exist."""
        for path, what in ((self.video, "video file or folder of frames"), (self.cameras, "cameras file")):
            if path is not None and not path.exists():
                raise FileNotFoundError(f"{path}: no such {what}")

    def scenes(self, split: Split) -> list[Scene]:
        """Return the one scene."""
        if split == "train":
            raise ValueError(f"{self.video}: a question without a ground truth can't be trained on: use predict")
        self.prepare()
        cameras = self.cameras or find_cameras(self.video)
        return [Scene(self.video.stem, self.video, (self.question,), cameras)]
