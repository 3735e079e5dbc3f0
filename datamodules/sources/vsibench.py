"""VSI-Bench (arXiv 2412.14171)."""

from __future__ import annotations

from datamodules.scenes import Scene
from datamodules.sources.annotations import read_layout
from datamodules.sources.base import SceneSource, Split, only_for_tests, require_file
from datamodules.sources.hub_dataset import dataset_folder


class VSIBench(SceneSource):
    """VSI-Bench's questions and videos; its only split, test, also serves validation.

    Args:
        root: Folder with the annotations and `<dataset>/<scene_name>.mp4`, or a folder of frames of that
            name; a `<scene_name>.cameras.json` beside it is used. See `datamodules.sources.annotations`. Or
            `hf://datasets/nyu-visionx/VSI-Bench`, which is downloaded.
        annotations: The annotation file, a name in `root` or an absolute path: test.jsonl, or a parquet file of
            the hub's dataset: test_debiased.parquet, or test_pruned.parquet, the questions that it leaves out.
        debiased: Leave out the questions listed in `pruned_ids.txt` beside the annotations, which are answerable
            without the video (VSI-Bench-Debiased, arXiv 2511.04655).

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: The annotations are invalid, or the split is train.
    """

    has_cameras = False

    def __init__(self, root: str, annotations: str = "test.jsonl", debiased: bool = False) -> None:
        super().__init__()
        self.address, self.file_name, self.debiased = root, annotations, debiased

    def prepare(self) -> None:
        """Find the files."""
        self.root = dataset_folder(self.address)
        self.annotations = (self.root / self.file_name).absolute()
        self.pruned = self.annotations.with_name("pruned_ids.txt") if self.debiased else None
        for file in (self.annotations, self.pruned):
            if file is not None:
                remedy = f"download the dataset nyu-visionx/VSI-Bench from the hub and unpack its videos to {self.root}"
                require_file(file, f"{remedy}/<dataset>/<scene_name>.mp4")

    def scenes(self, split: Split) -> list[Scene]:
        """List the scenes of the test split."""
        only_for_tests(self, split)
        self.prepare()
        left_out = set() if self.pruned is None else set(self.pruned.read_text(encoding="utf-8").split())
        scenes, self.missing = read_layout(self.root, self.annotations, left_out, self.benchmark)
        return scenes
