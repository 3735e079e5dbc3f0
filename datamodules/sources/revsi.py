"""ReVSI (arXiv 2604.24300)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.scenes import Scene
from datamodules.sources.annotations import read_layout
from datamodules.sources.base import SceneSource, Split, only_for_tests
from datamodules.sources.hub_dataset import dataset_folder
from zoo.benchmarks import ReVSI as ReVSIBenchmark
from zoo.errors import InputError


class ReVSI(SceneSource):
    """ReVSI's questions and videos; its only split, test, also serves validation.

    An object that no frame shows can't be counted, so questions and ground truths depend on the frame budget. The
    number of frames that the sampler takes chooses them: `<root>/16_frame/test-*.parquet` (or .jsonl) and the videos
    `<root>/16_frame/<scene_id>.mp4`, which have these 16 frames. A `<scene_id>.cameras.json` beside a video is used.

    Args:
        root: Folder of the budgets, or `hf://datasets/3dlg-hcvc/ReVSI`.
        whole_videos: Ask about the whole videos, `<root>/all_frame`, whatever the number of frames.

    Raises:
        FileNotFoundError: The data is absent.
        ValueError: The annotations are invalid, or the split is train.
        InputError: There is no ground truth for the number of frames.
    """

    has_cameras = False
    benchmark = ReVSIBenchmark()

    def __init__(self, root: str, whole_videos: bool = False) -> None:
        super().__init__()
        self.root, self.whole_videos = root, whole_videos

    def prepare(self) -> None:
        """Checks that the budget's annotations exist."""
        self._annotations()

    def scenes(self, split: Split) -> list[Scene]:
        """List the scenes of the test split."""
        only_for_tests(self, split)
        file = self._annotations()
        scenes, self.missing = read_layout(file.parents[1], file, benchmark=self.benchmark, convert=self._convert)
        return scenes

    @property
    def budget(self) -> str:
        """The frame budget, as the dataset names it."""
        return "all" if self.whole_videos else str(self.num_frames)

    def _annotations(self) -> Path:
        root = dataset_folder(self.root)
        budgets = {path.name.removesuffix("_frame"): path for path in sorted(root.glob("*_frame"))}
        if not budgets:
            raise FileNotFoundError(
                f"{root} has no folder such as 16_frame: download the dataset 3dlg-hcvc/ReVSI from the hub and unpack "
                "its video.zip there"
            )
        files = [file for kind in ("parquet", "jsonl") for file in root.glob(f"{self.budget}_frame/test*.{kind}")]
        if not files:
            numbers = sorted((b for b in budgets if b.isdigit()), key=int)
            raise InputError(
                f"{root}: no ground truth for {self.budget} frames, only for {', '.join(budgets)}: choose --data."
                f"num_frames {' or '.join(numbers)}, or ask about the whole videos: --data.source.whole_videos true"
            )
        if len(files) > 1:
            names = ", ".join(sorted(file.name for file in files))
            raise InputError(f"{files[0].parent} has several files of annotations ({names}): join them into one")
        return files[0]

    def _convert(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with VSI-Bench's field names; scenes have the name of their video, `16_frame/<scene_id>`."""
        if row.get("ground_truth") is None or str(row.get("num_frames", self.budget)) != self.budget:
            raise ValueError(
                f"question {row.get('id')} has no ground truth for {self.budget} frames: download it again"
            )
        return {**row, "dataset": f"{self.budget}_frame", "scene_name": row.get("scene_id")}
