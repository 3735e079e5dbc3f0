"""VSI-Bench, ReVSI and VSTI-Bench, from a local folder or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import ZipFile

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from datamodules.scenes import MediaFiles, Question, Scene
from datamodules.sources.annotations import list_scenes, read_layout, read_questions
from datamodules.sources.base import SceneSource, Split, locked, only_for_tests, require_file
from zoo.benchmarks import ReVSI as ReVSIBenchmark
from zoo.benchmarks import VSTIBench as VSTIBenchmark
from zoo.errors import InputError

HUB = "hf://datasets/"


def dataset_folder(root: str) -> Path:
    """Return the folder of a dataset. A dataset on the hub is downloaded, and its zip files are unpacked beside them.

    Args:
        root: A folder, or the hub's address of a dataset, such as `hf://datasets/nyu-visionx/VSI-Bench`.

    Raises:
        FileNotFoundError: The dataset is neither in the local cache nor on the hub, or there is no network.
    """
    if not root.startswith(HUB):
        return Path(root).expanduser()
    name = root.removeprefix(HUB)
    try:
        folder = Path(snapshot_download(name, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        remedy = f"where there is a network, `hf download {name} --repo-type dataset --local-dir data/{name}`"
        raise FileNotFoundError(f"{root} can't be downloaded ({error}): {remedy}") from error
    # the mark is written last, so that an interrupted run unpacks again
    unpacked = {archive: archive.with_suffix(".unpacked") for archive in sorted(folder.glob("*.zip"))}
    if not all(mark.exists() for mark in unpacked.values()):
        with locked(folder / ".unpacking.lock", f"another process unpacks {name}: waiting for it"):
            for archive, mark in unpacked.items():
                if not mark.exists():
                    with ZipFile(archive) as content:
                        content.extractall(folder)
                    mark.touch()
    return folder


# ---- VSI-Bench (arXiv 2412.14171) -----------------------------------------------------------------------------------


class VSIBench(SceneSource):
    """VSI-Bench's questions and videos. Its only split, test, also serves as validation split.

    Args:
        root: Folder with the annotations and `<dataset>/<scene_name>.mp4`, or a folder of frames of that name. A
            `<scene_name>.cameras.json` beside it is used, see `datamodules.sources.annotations`.
            `hf://datasets/nyu-visionx/VSI-Bench` is downloaded.
        annotations: The annotation file, as a name in `root` or an absolute path: test.jsonl, or a parquet file of the
            hub's dataset, such as test_debiased.parquet or its complement test_pruned.parquet.
        debiased: Leave out the questions listed in `pruned_ids.txt` beside the annotations, which can be answered
            without the video (VSI-Bench-Debiased, arXiv 2511.04655).

    Raises:
        FileNotFoundError: A file is missing.
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
        """Return the scenes of the test split."""
        only_for_tests(self, split)
        self.prepare()
        left_out = set() if self.pruned is None else set(self.pruned.read_text(encoding="utf-8").split())
        scenes, self.missing = read_layout(self.root, self.annotations, left_out, self.benchmark)
        return scenes


# ---- ReVSI (arXiv 2604.24300) ---------------------------------------------------------------------------------------


class ReVSI(SceneSource):
    """ReVSI's questions and videos. Its only split, test, also serves as validation split.

    Questions and ground truths depend on the frame budget, because an object that no frame shows can't be counted. The
    sampler's number of frames selects them: `<root>/16_frame/test-*.parquet` (or .jsonl) and the videos
    `<root>/16_frame/<scene_id>.mp4`, which have these 16 frames. A `<scene_id>.cameras.json` beside a video is used.

    Args:
        root: Folder of the budgets, or `hf://datasets/3dlg-hcvc/ReVSI`.
        whole_videos: Ask about the whole videos in `<root>/all_frame`, for any number of frames.

    Raises:
        FileNotFoundError: The data is missing.
        ValueError: The annotations are invalid, or the split is train.
        InputError: There is no ground truth for the number of frames.
    """

    has_cameras = False
    benchmark = ReVSIBenchmark()

    def __init__(self, root: str, whole_videos: bool = False) -> None:
        super().__init__()
        self.root, self.whole_videos = root, whole_videos

    def prepare(self) -> None:
        """Check that the budget's annotations exist."""
        self._annotations()

    def scenes(self, split: Split) -> list[Scene]:
        """Return the scenes of the test split."""
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
        """Rename a row's fields to VSI-Bench's. Scenes are named after their video, `16_frame/<scene_id>`."""
        if row.get("ground_truth") is None or str(row.get("num_frames", self.budget)) != self.budget:
            raise ValueError(
                f"question {row.get('id')} has no ground truth for {self.budget} frames: download it again"
            )
        return {**row, "dataset": f"{self.budget}_frame", "scene_name": row.get("scene_id")}


# ---- VSTI-Bench (arXiv 2505.20279) ----------------------------------------------------------------------------------


class VSTIBench(SceneSource):
    """VSTI-Bench's questions on videos of ScanNet. Its only split, test, also serves as validation split.

    The truth of a multiple-choice question is the letter `mc_answer`. Options of numeric questions are not shown.
    For the two releases of the labels see `zoo.benchmarks.vstibench`.

    Args:
        root: Folder with the annotations and the videos at the paths that they name, such as
            `ScanNet/videos/val/scene0011_00.mp4`, or folders of frames of that name. A `<scene>.cameras.json` beside a
            video is used. `hf://datasets/Journey9ni/vstibench` is downloaded.
        annotations: The annotation file, as a name in `root` or an absolute path.
        cameras: Folder of cameras and depth by scene, as written by `import-cameras --dataset`. null uses the files
            beside the videos.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The annotations are invalid, or the split is train.
    """

    has_cameras = False
    benchmark = VSTIBenchmark()

    def __init__(self, root: str, annotations: str = "test.json", cameras: str | None = None) -> None:
        super().__init__()
        self.address, self.file_name = root, annotations
        self.cameras = Path(cameras).expanduser() if cameras else None

    def prepare(self) -> None:
        """Find the files."""
        self.root = dataset_folder(self.address)
        self.annotations = (self.root / self.file_name).absolute()
        require_file(self.annotations, f"download the dataset Journey9ni/vstibench from the hub to {self.root}")

    def scenes(self, split: Split) -> list[Scene]:
        """Return the scenes of the test split."""
        only_for_tests(self, split)
        self.prepare()
        questions = read_questions(self.annotations, self.benchmark, self._convert)
        asked: dict[MediaFiles, Sequence[Question]] = {name: own for name, own in questions.items()}
        self.missing = {}
        return list_scenes(self.root, asked, self.missing, self.cameras)

    def _convert(self, row: dict[str, Any]) -> dict[str, Any]:
        """Rename a row's fields to VSI-Bench's. A scene has its video's name, a question without an id its text."""
        has_choice = row.get("question_type") in self.benchmark.multiple_choice_types
        if missing := [name for name in ("video_path", *(["mc_answer"] if has_choice else [])) if not row.get(name)]:
            raise ValueError(f"missing: {', '.join(missing)}")
        scene = PurePosixPath(str(row["video_path"])).with_suffix("")
        id = row.get("id", f"{scene.name}: {row.get('question')} {row.get('options') or ''}".strip())
        row = {**row, "id": id, "dataset": str(scene.parent), "scene_name": scene.name}
        return row | ({"ground_truth": row["mc_answer"]} if has_choice else {"options": None})
