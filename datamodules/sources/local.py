"""Local videos with questions: a folder of scenes, a copy of VSI-Bench, or one video with one question."""

from __future__ import annotations

from pathlib import Path

from datamodules.scenes import Question, Scene
from datamodules.sources.annotations import find_cameras, read_layout
from datamodules.sources.base import SceneSource, Split


class SceneFolder(SceneSource):
    """Videos with questions and optional cameras: `<root>/{train,val,test}.jsonl` and the videos.

    Args:
        root: The folder, see `datamodules.sources.annotations`; cameras: see `datamodules.cameras_file`.

    Raises:
        FileNotFoundError: In `scenes`: no questions for the split.
        ValueError: In `scenes`: malformed questions.
    """

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = Path(root).expanduser()

    def scenes(self, split: Split) -> list[Scene]:
        """The scenes whose videos exist; the others are in `missing`."""
        if not (self.root / f"{split}.jsonl").is_file():
            raise FileNotFoundError(f"{self.root / split}.jsonl is absent: --data.source.root is its folder")
        scenes, self.missing = read_layout(self.root, f"{split}.jsonl", benchmark=self.benchmark)
        return scenes


class VSIBench(SceneSource):
    """VSI-Bench's questions and videos; its only split, test, also serves validation.

    Args:
        root: Folder with the annotations and `<dataset>/<scene_name>.mp4`, or a folder of frames of that
            name; a `<scene_name>.cameras.json` beside it is used. See `datamodules.sources.annotations`.
        annotations: The annotation file, a name in `root` or an absolute path: test.jsonl, or a parquet file of
            the hub's dataset such as test_debiased.parquet.
        debiased: Leave out the questions listed in `pruned_ids.txt` beside the annotations, which are answerable
            without the video (VSI-Bench-Debiased, arXiv 2511.04655).

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: The annotations are invalid, or the split is train.
    """

    def __init__(self, root: str, annotations: str = "test.jsonl", debiased: bool = False) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.annotations = (self.root / annotations).absolute()
        self.pruned = self.annotations.with_name("pruned_ids.txt") if debiased else None

    def prepare(self) -> None:
        """Checks that the files exist."""
        for file in (self.annotations, self.pruned):
            if file is not None and not file.is_file():
                remedy = f"download the dataset nyu-visionx/VSI-Bench from the hub and unpack its videos to {self.root}"
                raise FileNotFoundError(f"{file} is absent: {remedy}/<dataset>/<scene_name>.mp4")

    def scenes(self, split: Split) -> list[Scene]:
        """Lists the scenes of the test split."""
        if split == "train":
            raise ValueError("VSI-Bench has no training split: train on another source, such as Rooms")
        self.prepare()
        left_out = set() if self.pruned is None else set(self.pruned.read_text(encoding="utf-8").split())
        scenes, self.missing = read_layout(self.root, self.annotations, left_out, self.benchmark)
        return scenes


class SingleVideo(SceneSource):
    """One video with one question and no ground truth.

    Args:
        video: A video file, or a folder of frames; `<name>.cameras.json` beside it is used.
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
        """Returns the one scene."""
        if split == "train":
            raise ValueError(f"{self.video}: a question without a ground truth can't be trained on: use predict")
        self.prepare()
        cameras = self.cameras or find_cameras(self.video)
        return [Scene(self.video.stem, self.video, (self.question,), cameras)]
