"""The one DataModule: scenes of any source, their frames chosen and read, and their questions in batches."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.cameras_file import read_cameras
from datamodules.collate import Collate, LoadedScene, pair_cameras
from datamodules.order import ResumableLoader, TrainingOrder
from datamodules.resize import PixelBounds, resize_frames
from datamodules.samplers import FrameSampler, UniformSampler
from datamodules.scenes import Scene
from datamodules.sources import Rooms, SceneSource, SingleVideo
from datamodules.sources.base import Split
from datamodules.video import Video
from zoo.errors import InputError

log = logging.getLogger(__name__)

MERGED_FRAMES = 2  # Qwen2.5-VL's temporal_patch_size: two chosen frames make one grid step


class SceneDataset(Dataset):
    """Reads scenes: (scene, epoch) for training, which draws some questions, or a scene with all of them.

    Args:
        scenes: of a split.
        sampler: chooses num_frames frames of each.
        bounds: of the frames' size.
        needs_cameras: a scene without is an error.
        questions_per_scene: how many questions training draws of a scene, anew each epoch.
        seed: of that draw.
        keep: keep what was read in memory.

    A scene that can't be read comes with its `error`, and the rest goes on.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        sampler: FrameSampler,
        num_frames: int,
        bounds: PixelBounds,
        needs_cameras: bool,
        questions_per_scene: int = 1,
        seed: int = 0,
        keep: bool = False,
    ):
        self.scenes, self.sampler, self.num_frames, self.bounds = scenes, sampler, num_frames, bounds
        self.needs_cameras, self.questions_per_scene, self.seed = needs_cameras, questions_per_scene, seed
        self._kept: dict[int, LoadedScene] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, key: int | tuple[int, int]) -> LoadedScene:
        if isinstance(key, int):
            return self._load(key)
        index, epoch = key
        loaded = self._load(index)
        draw = random.Random(f"{self.seed}/{epoch}/{loaded.scene.name}")
        count = min(self.questions_per_scene, len(loaded.questions))
        return replace(loaded, questions=tuple(draw.sample(loaded.questions, count)))

    def _load(self, index: int) -> LoadedScene:
        if self._kept is not None and index in self._kept:
            return self._kept[index]
        scene = self.scenes[index]
        try:
            loaded = self._read(scene)
        except (OSError, ValueError) as error:
            return LoadedScene(scene, scene.questions, error=str(error))
        if self._kept is not None:
            self._kept[index] = loaded
        return loaded

    def _read(self, scene: Scene) -> LoadedScene:
        video = Video(scene.video)
        world_to_camera = intrinsics = None
        if scene.cameras is not None:
            world_to_camera, intrinsics = read_cameras(
                scene.cameras, video.num_frames, video.height, video.width
            )
        elif self.needs_cameras:
            raise InputError(
                f"{scene.video}: no cameras, so the camera encoding has nothing to act on: put "
                f"{scene.video.stem}.cameras.json beside it, or take a model without an encoding"
            )
        chosen = self.sampler(video, self.num_frames, world_to_camera)
        frames = resize_frames(video.read(chosen), self.bounds, is_folder=video.is_folder)
        span = (chosen[-1] - chosen[0]) / (video.fps or 1.0)
        cameras = None
        if world_to_camera is not None and intrinsics is not None:
            cameras = pair_cameras(world_to_camera[chosen], intrinsics[chosen], MERGED_FRAMES)
        return LoadedScene(
            scene,
            scene.questions,
            frames=frames,
            frame_indices=tuple(chosen),
            seconds_per_grid=MERGED_FRAMES * span / max(1, len(chosen) - 1),
            cameras=cameras,
        )


class VideoQADataModule(LightningDataModule):
    """Videos with questions, scene first: a video is decoded and seen once, whatever is asked about it.

    Args:
        source: the dataset.
        num_frames: frames of each video; two make one grid step.
        sampler: which frames.
        pixels: bounds of a frame's size.
        batch_size: scenes in a training batch, on each process.
        questions_per_scene: questions of a scene in a training step, drawn anew each epoch.
        questions_per_batch: questions answered at once; the scene they ask about is encoded once.
        datasets: keep only these datasets of the source (the first part of a scene's name).
        question_types: keep only questions of these types.
        num_workers: processes that read ahead; 0 reads in the main process.
        keep_in_memory: keep the frames that were read (of small data; needs num_workers 0).
        seed: of the order of training.
        video: for `predict`: a video file or a folder of frames, in place of the source.
        question: for `predict`: what to ask of it.
    """

    def __init__(
        self,
        source: SceneSource | None = None,
        num_frames: int = 16,
        sampler: FrameSampler | None = None,
        pixels: PixelBounds | None = None,
        batch_size: int = 1,
        questions_per_scene: int = 1,
        questions_per_batch: int = 8,
        datasets: list[str] | None = None,
        question_types: list[str] | None = None,
        num_workers: int = 1,
        keep_in_memory: bool = False,
        seed: int = 0,
        video: str | None = None,
        question: str | None = None,
    ):
        super().__init__()
        if keep_in_memory and num_workers:
            raise InputError("keep_in_memory needs --data.num_workers 0: each worker would keep a copy of its own")
        if (video is None) != (question is None):
            raise InputError("predict takes both --data.video and --data.question")
        self.source = source or Rooms()
        if video is not None and question is not None:
            self.asked: SceneSource | None = SingleVideo(video, question)
        else:
            self.asked = None
        self.num_frames, self.sampler = num_frames, sampler or UniformSampler()
        self.pixels = pixels or PixelBounds()
        self.batch_size, self.questions_per_scene = batch_size, questions_per_scene
        self.questions_per_batch = questions_per_batch
        self.datasets, self.question_types = datasets, question_types
        self.num_workers, self.keep_in_memory, self.seed = num_workers, keep_in_memory, seed

    def prepare_data(self) -> None:
        (self.asked or self.source).prepare()

    def scenes(self, split: Split) -> list[Scene]:
        """The scenes of a split with the questions that the filters leave, those whose video is missing left out.

        Raises:
            InputError: none is left.
        """
        kept = []
        for scene in self.source.scenes(split):
            questions = tuple(
                q for q in scene.questions if not self.question_types or q.question_type in self.question_types
            )
            if questions and (not self.datasets or scene.name.split("/")[0] in self.datasets):
                kept.append(replace(scene, questions=questions))
        missing = self.source.missing
        if missing:
            names = ", ".join(list(missing)[:5]) + (", …" if len(missing) > 5 else "")
            log.warning(
                "%d questions are left out: the videos of %d scenes are missing (%s)",
                *(sum(missing.values()), len(missing), names),
            )
        if not kept:
            asked = f" with datasets={self.datasets} question_types={self.question_types}"
            raise InputError(
                f"{type(self.source).__name__}: the {split} split has no scene that can be read"
                + (asked if self.datasets or self.question_types else "")
            )
        return kept

    def _dataset(self, scenes: list[Scene]) -> SceneDataset:
        return SceneDataset(
            scenes,
            self.sampler,
            self.num_frames,
            self.pixels,
            needs_cameras=self.trainer.lightning_module.needs_cameras,  # type: ignore[union-attr]
            questions_per_scene=self.questions_per_scene,
            seed=self.seed,
            keep=self.keep_in_memory,
        )

    def _collate(self, training: bool) -> Collate:
        processor: Any = self.trainer.lightning_module.processor  # type: ignore[union-attr]
        return Collate(processor, training, self.questions_per_batch)

    def train_dataloader(self) -> ResumableLoader:
        dataset = self._dataset(self.scenes("train"))
        trainer = self.trainer
        assert trainer is not None
        order = TrainingOrder(len(dataset), self.batch_size, self.seed, trainer.global_rank, trainer.world_size)
        return ResumableLoader(
            dataset, batch_sampler=order, collate_fn=self._collate(True), num_workers=self.num_workers
        )

    def _scene_loader(self, scenes: list[Scene]) -> DataLoader:
        """A scene a batch with all its questions; ranks take turns, and none repeats a scene to be even."""
        trainer = self.trainer
        assert trainer is not None
        own = scenes[trainer.global_rank :: trainer.world_size]
        return DataLoader(
            self._dataset(own),  # type: ignore[arg-type]
            batch_size=1,
            collate_fn=self._collate(False),
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader:
        return self._scene_loader(self.scenes("val"))

    def test_dataloader(self) -> DataLoader:
        return self._scene_loader(self.scenes("test"))

    def predict_dataloader(self) -> DataLoader:
        if self.asked is None:
            raise InputError("predict needs --data.video clip.mp4 --data.question \"What is the size of this room?\"")
        return self._scene_loader(self.asked.scenes("test"))
