"""The one DataModule: scenes of any source, their frames chosen and read, and their questions in batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from datamodules.collate import Collate, LoadedScene, record
from datamodules.dataset import SceneDataset
from datamodules.filters import QuestionFilter
from datamodules.order import ResumableLoader, TrainingOrder, balance_across_ranks
from datamodules.resize import PixelBounds
from datamodules.samplers import Consecutive, FramePairing, FrameSampler, UniformSampler
from datamodules.scenes import Scene
from datamodules.sources import Rooms, SceneSource, SingleVideo
from datamodules.sources.base import Split
from zoo.configuration import Configurable
from zoo.errors import InputError
from zoo.fingerprint import file_fingerprint
from zoo.requirements import DataRequirements
from zoo.visual_grid import TEMPORAL_PATCH_SIZE


@contextmanager
def as_input_error() -> Iterator[None]:
    """What a source says of its files is meant for the user."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(str(error)) from error


class VideoQADataModule(Configurable, LightningDataModule):
    """Videos with questions, scene first: a video is decoded and seen once, whatever is asked about it.

    Args:
        source: the dataset.
        num_frames: frames of each video; two make one grid step.
        sampler: which frames.
        train_sampler: which frames in training, if others, such as `RandomSampler`.
        frame_pairing: which two frames share a token; consecutive ones if not given.
        pixels: bounds of a frame's size.
        batch_size: scenes in a training batch, on each process.
        questions_per_scene: questions of a scene in a training step, drawn anew each epoch.
        questions_per_batch: questions answered at once; the scene they ask about is encoded once.
        datasets: keep only these datasets of the source (the first part of a scene's name).
        question_types: keep only questions of these types.
        scene_names: keep only these scenes; a list, or a text file with one a line.
        subset: keep so many questions of those that the other filters leave, drawn by `seed`.
        num_workers: processes that read ahead; 0 reads in the main process.
        keep_in_memory: keep the training videos decoded, and their depth once read (small data; needs num_workers 0).
        seed: of the order of training, and of the subset.
        video: for `predict`: a video file or a folder of frames, in place of the source.
        question: for `predict`: what to ask of it.
    """

    def __init__(
        self,
        source: SceneSource | None = None,
        num_frames: int = 16,
        sampler: FrameSampler | None = None,
        train_sampler: FrameSampler | None = None,
        frame_pairing: FramePairing | None = None,
        pixels: PixelBounds | None = None,
        batch_size: int = 1,
        questions_per_scene: int = 1,
        questions_per_batch: int = 8,
        datasets: list[str] | None = None,
        question_types: list[str] | None = None,
        scene_names: list[str] | str | None = None,
        subset: int | None = None,
        num_workers: int = 1,
        keep_in_memory: bool = False,
        seed: int = 0,
        video: str | None = None,
        question: str | None = None,
    ):
        super().__init__()
        counts = {
            "num_frames": num_frames,
            "batch_size": batch_size,
            "questions_per_scene": questions_per_scene,
            "questions_per_batch": questions_per_batch,
        }
        least = {"num_frames": TEMPORAL_PATCH_SIZE}  # they make one step of the grid
        for name, count in counts.items():
            if count < least.get(name, 1):
                raise InputError(f"--data.{name} {count}: at least {least.get(name, 1)}")
        for name, chooses in (("sampler", sampler), ("train_sampler", train_sampler)):
            if chooses is not None and chooses.candidates is not None and chooses.candidates < TEMPORAL_PATCH_SIZE:
                raise InputError(
                    f"--data.{name}.candidates {chooses.candidates}: at least {TEMPORAL_PATCH_SIZE}, or null for all"
                )
        if keep_in_memory and num_workers:
            raise InputError("keep_in_memory needs --data.num_workers 0: each worker would keep a copy of its own")
        if (video is None) != (question is None):
            raise InputError("predict takes both --data.video and --data.question")
        self.source = source or Rooms()
        self.filtered = 0  # questions of the last split read that question_types leaves out
        self.missing: dict[str, int] = {}  # scenes whose video is absent: how many questions they have
        self.answered: dict[str, dict[str, Any]] = {}  # by id, the records of questions that a test need not ask again
        self.tested: list[dict[str, Any]] = []  # the record of each question of the test, on whatever process it is
        self.tested_files: dict[str, list[str]] = {}  # what identifies the files that it reads of each scene
        if video is not None and question is not None:
            self.asked: SceneSource | None = SingleVideo(video, question)
        else:
            self.asked = None
        self.num_frames, self.sampler = num_frames, sampler or UniformSampler()
        self.train_sampler = train_sampler or self.sampler
        self.frame_pairing = frame_pairing or Consecutive()
        self.pixels = pixels or PixelBounds()
        self.batch_size, self.questions_per_scene = batch_size, questions_per_scene
        self.questions_per_batch = questions_per_batch
        self.filter = QuestionFilter(datasets, question_types, scene_names, subset, seed)
        self.filter.check_types(self.source.benchmark)
        self.num_workers, self.keep_in_memory, self.seed = num_workers, keep_in_memory, seed

    def prepare_data(self) -> None:
        if self.asked is None and self.trainer is not None and self.trainer.state.fn == "predict":
            raise InputError('predict needs --data.video clip.mp4 --data.question "What is the size of this room?"')
        if self.asked is not None and self.trainer is not None and self.trainer.state.fn != "predict":
            raise InputError(f"--data.video is for predict, not for {self.trainer.state.fn}")
        with as_input_error():
            (self.asked or self.source).prepare()

    def scenes(self, split: Split) -> list[Scene]:
        """The scenes of a split with the questions that the filters leave, those whose video is missing left out.

        Raises:
            InputError: none is left.
        """
        with as_input_error():
            kept, self.filtered, names = self.source.filtered_split(split, self.filter)
            if split != "train":  # training questions have no score
                for kind in {q.question_type for scene in kept for q in scene.questions if q.question_type}:
                    self.source.benchmark.check_question_type(kind)
        self.missing = self.filter.matching(self.source.missing)
        if unmatched := self.filter.unmatched([*names, *self.source.missing]):
            rank_zero_info(f"{split}: no scene meets {', '.join(unmatched)}")
        if self.missing and split == "train":
            first = next(iter(self.missing))
            rank_zero_info(f"train: videos of scenes that are missing: {len(self.missing)}, {first} first")
        if not kept:
            raise InputError(
                f"{type(self.source).__name__}: the {split} split has no scene that can be read"
                + self.filter.described()
                + (
                    f"; videos that are missing: {len(self.missing)}, {next(iter(self.missing))} first"
                    if self.missing
                    else ""
                )
            )
        if self.requirements.cameras and all(scene.cameras is None for scene in kept):
            raise InputError(
                f"{type(self.source).__name__}: no scene of the {split} split has cameras, so the camera encoding has "
                f"nothing to act on: put {kept[0].video.stem}.cameras.json beside {kept[0].video} and so on, or "
                "train with a VGGT that finds them, --model.geometry PretrainedVGGT --model.camera_source auto"
            )
        return kept

    @property
    def requirements(self) -> DataRequirements:
        """What the model needs of the data; nothing before there is a model."""
        task: Any = None if self.trainer is None else self.trainer.lightning_module
        return DataRequirements() if task is None else task.requirements

    def describe(self) -> dict[str, Any]:
        """What the results of a run on this data are to be read with."""
        return {
            "source": type(self.source).__name__,
            "num_frames": self.num_frames,
            "sampler": type(self.sampler).__name__,
            "frame_pairing": type(self.frame_pairing).__name__,
            **asdict(self.filter),
        }

    def dataset(self, scenes: list[Scene], sampler: FrameSampler, keep: bool = False) -> SceneDataset:
        """Scenes with the frames that a sampler chooses; `keep` keeps decoded videos in memory."""
        return SceneDataset(
            scenes,
            sampler,
            self.num_frames,
            self.pixels,
            requirements=self.requirements,
            questions_per_scene=self.questions_per_scene,
            seed=self.seed,
            keep=keep,
            frame_pairing=self.frame_pairing,
        )

    def _collate(self, training: bool) -> Collate:
        task: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        needs = self.requirements
        return Collate(
            task.preprocessor,
            training,
            self.questions_per_batch,
            task.extra_tokens,
            needs.frames,
            needs.timestamps,
            (self.asked or self.source).benchmark,
        )

    def train_dataloader(self) -> ResumableLoader:
        dataset = self.dataset(self.scenes("train"), self.train_sampler, keep=self.keep_in_memory)
        trainer = self.trainer
        assert trainer is not None
        order = TrainingOrder(len(dataset), self.batch_size, self.seed, trainer.global_rank, trainer.world_size)
        return ResumableLoader(
            dataset, batch_sampler=order, collate_fn=self._collate(True), num_workers=self.num_workers
        )

    def _scene_loader(self, scenes: list[Scene]) -> DataLoader:
        """A scene a batch with all its questions, this process's share of them."""
        trainer = self.trainer
        assert trainer is not None
        own = balance_across_ranks([len(scene.questions) for scene in scenes], trainer.world_size)[trainer.global_rank]
        return DataLoader(
            self.dataset(scenes, self.sampler),  # type: ignore[arg-type]
            batch_sampler=[[scene] for scene in own] or [[]],  # Lightning would leave a process without a batch out
            collate_fn=self._collate(False),
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return self._scene_loader(self.scenes("val"))

    def test_dataloader(self) -> DataLoader:
        scenes, prompt = self.scenes("test"), self._collate(False).prompt
        self.tested = [record(LoadedScene(scene, ()), q, prompt(q)) for scene in scenes for q in scene.questions]
        self.tested_files = {scene.name: [file_fingerprint(file) for file in self._files(scene)] for scene in scenes}
        rest = [replace(s, questions=tuple(q for q in s.questions if q.id not in self.answered)) for s in scenes]
        return self._scene_loader([scene for scene in rest if scene.questions])

    def _files(self, scene: Scene) -> list[Path]:
        """What frames, cameras and depth of a scene are read from, as far as it is there."""
        own = (scene.video, scene.cameras, scene.depth)
        return [file for file in (*own, *self.sampler.reads(scene.name)) if file is not None and file.exists()]

    def predict_dataloader(self) -> DataLoader:
        assert self.asked is not None and self.trainer is not None  # prepare_data has refused already
        if self.trainer.world_size > 1:
            raise InputError("predict asks about one scene, so it takes one process: lower --trainer.devices")
        dataset, collate = self.dataset(self.asked.scenes("test"), self.sampler), self._collate(False)
        return DataLoader(dataset, collate_fn=collate, num_workers=self.num_workers)  # type: ignore[arg-type]
