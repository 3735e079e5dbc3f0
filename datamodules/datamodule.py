"""The DataModule: scenes of any source with selected frames, and their questions in batches."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentations import Augmentation
from datamodules.collate import Collate, QuestionCollate, SceneCollate, TrainingCollate
from datamodules.dataset import SceneDataset
from datamodules.frame_cache import FrameCache
from datamodules.loaded_scene import FramesAs, Wording
from datamodules.perturbations import Perturbation, PerturbedScenes
from datamodules.question_sampler import ResumableLoader, TrainingOrder, TrainingPosition, balance_across_ranks
from datamodules.resize import PixelBounds, StillResize
from datamodules.resumable_test import ResumableTest
from datamodules.samplers import Consecutive, FramePairing, FrameSampler, UniformSampler
from datamodules.scenes import Question, Scene, num_answers, questions_fingerprint
from datamodules.skipped_scenes import SkippedScenes, SpareCollate
from datamodules.sources import Rooms, SceneSource, SingleVideo
from datamodules.sources.base import QuestionFilter, Split
from datamodules.split_requirements import check_questions, check_requirements
from zoo.configuration import Configurable, known_config, to_config
from zoo.errors import InputError, check_choice, describe
from zoo.model_spec import DataRequirements
from zoo.seed import resolve_seed
from zoo.sequences.batch import Batch
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE


@contextmanager
def as_input_error() -> Iterator[None]:
    """Turn a source's errors about its files into `InputError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(describe(error)) from error


class VideoQADataModule(Configurable, LightningDataModule):
    """Videos with questions, scene first: a video is decoded and encoded once for all of its questions.

    Args:
        source: Dataset; null is `Rooms`.
        num_frames: Frames per video; two frames form one temporal patch.
        sampler: Frame sampler; null is `UniformSampler`.
        train_sampler: Frame sampler for training, such as `RandomSampler`; null is `sampler`.
        frame_pairing: Which two frames are merged into one token; null merges consecutive ones.
        train_frame_pairing: The same for training, such as `Duplicate`, as GeoVR trains; null is `frame_pairing`.
        frames_as: Show the frames of a video as a `video`, in which two are merged into a token; each as an `image` of
            its own, with one camera; or as a `labeled_image`, after its number from 1 ("Frame-1: ") and before a line
            break, or an `indexed_image`, after its number from 0, as VG-LLM asks ScanRefer. Images have no pairing.
        system_prompt: Text of a system turn before the user's; null is that of the chat template, if it has one
            (Qwen2.5-VL's says "You are a helpful assistant.").
        prompt_prefix: First line of the user's text, such as "These are frames of a video.", which lmms-eval puts
            there; null is the benchmark's own, and "" none.
        prompt_wording: Instruction after the question, such as `geovr` of VSI-Bench; null is the benchmark's own.
        pixels: Bounds of a frame's size in a video.
        image_pixels: Bounds of a still image's size; null is the model's own.
        still_resize: How still images are resized in place of `image_pixels`, for a geometry encoder that sees other
            pictures than the vision tower (`FixedWidthStills`, `OriginalStills`).
        batch_size: Sequences per training batch and rank: a scene with some of its questions. An epoch asks each
            question once.
        questions_per_scene: Most questions in one training sequence; which ones is drawn anew in each epoch. A scene
            that is drawn twice for a batch has twice as many.
        tokens_per_sequence: Most tokens in one training sequence with several questions; what exceeds them is another
            sequence of the same step. null is no bound.
        pack_scenes: Put the scenes of a training batch one behind the other, without padding, in sequences of at most
            `tokens_per_sequence` tokens; each attends to itself alone. For FlexAttention on a GPU.
        questions_per_batch: Questions answered at once about one scene, which is encoded once.
        datasets: Use only these datasets of the source (the first part of a scene's name).
        question_types: Use only questions of these types; `default` are those of the source, see `SceneSource`.
        scene_names: Use only these scenes; a list, or a text file with one name per line.
        subset: Number of questions drawn from those that the other filters keep, whatever the seed; null is all.
        augmentation: Change training scenes at random, such as `RandomFocalLength`; null shows them as they are.
        perturbation: For `test`: show the model something wrong, such as `OtherCameras`, to see what it relies on.
        frame_cache: Keeps the selected and resized frames of each scene on disk, so that a video is decoded once for
            all epochs and runs; null decodes them each time.
        num_workers: Processes that load data; 0 uses the main process.
        keep_in_memory: Keep decoded training videos and depth in memory (small data; requires num_workers 0 and no
            frame_cache).
        skip_failed: Scenes that a training may pass over since they can't be read; each is named once, and the run's
            skipped_scenes.jsonl lists them. A test records a scene that fails in any case.
        seed: Seed of the training order and of the questions drawn in training; null is the run's.
        video: For `predict`: a video file or a folder of frames, in place of the source.
        question: For `predict`: the question about it.
    """

    def __init__(
        self,
        source: SceneSource | None = None,
        num_frames: int = 16,
        sampler: FrameSampler | None = None,
        train_sampler: FrameSampler | None = None,
        frame_pairing: FramePairing | None = None,
        train_frame_pairing: FramePairing | None = None,
        frames_as: FramesAs = "video",
        system_prompt: str | None = None,
        prompt_prefix: str | None = None,
        prompt_wording: str | None = None,
        pixels: PixelBounds | None = None,
        image_pixels: PixelBounds | None = None,
        still_resize: StillResize | None = None,
        batch_size: int = 1,
        questions_per_scene: int = 1,
        tokens_per_sequence: int | None = None,
        pack_scenes: bool = False,
        questions_per_batch: int = 8,
        datasets: list[str] | None = None,
        question_types: list[str] | Literal["default"] | None = None,
        scene_names: list[str] | str | None = None,
        subset: int | None = None,
        augmentation: Augmentation | None = None,
        perturbation: Perturbation | None = None,
        frame_cache: FrameCache | None = None,
        num_workers: int = 1,
        keep_in_memory: bool = False,
        skip_failed: int = 0,
        seed: int | None = None,
        video: str | None = None,
        question: str | None = None,
    ):
        super().__init__()
        for name, count, least in (
            ("num_frames", num_frames, TEMPORAL_PATCH_SIZE),
            ("batch_size", batch_size, 1),
            ("questions_per_scene", questions_per_scene, 1),
            ("tokens_per_sequence", tokens_per_sequence, 1),
            ("questions_per_batch", questions_per_batch, 1),
            ("skip_failed", skip_failed, 0),
            ("sampler.candidates", sampler.candidates if sampler else None, TEMPORAL_PATCH_SIZE),
            ("train_sampler.candidates", train_sampler.candidates if train_sampler else None, TEMPORAL_PATCH_SIZE),
        ):
            if count is not None and count < least:
                raise InputError(f"--data.{name} {count}: at least {least}")
        if keep_in_memory and num_workers:
            raise InputError("keep_in_memory needs --data.num_workers 0: each worker would keep a copy of its own")
        if keep_in_memory and frame_cache is not None:
            raise InputError("keep_in_memory reads no --data.frame_cache: set --data.keep_in_memory false")
        if still_resize is not None and frame_cache is not None:
            rank_zero_info("--data.frame_cache keeps no still images of --data.still_resize: they are read each time")
        if (video is None) != (question is None):
            raise InputError("predict takes both --data.video and --data.question")
        self.source = source or Rooms()
        self.filtered = 0  # questions of the last split that the filters leave out
        self.missing: dict[str, int] = {}  # number of questions of each scene whose video is absent
        self.tested = ResumableTest()
        self.order_settings: dict[str, Any] = {}  # of the training order, and those of the checkpoint that resumes
        self.trained_settings: dict[str, Any] = {}
        self.asked: SceneSource | None = None
        if video is not None and question is not None:
            self.asked = SingleVideo(video, question)
        self.num_frames, self.sampler = num_frames, sampler or UniformSampler()
        self.train_sampler = train_sampler or self.sampler
        self.frame_pairing = frame_pairing or Consecutive()
        self.train_frame_pairing = train_frame_pairing or self.frame_pairing
        check_choice("frames_as", frames_as, FramesAs)
        self.frames_as, self.pixels, self.image_pixels = frames_as, pixels or PixelBounds(), image_pixels
        self.still_resize = still_resize
        self.batch_size, self.questions_per_scene = batch_size, questions_per_scene
        self.questions_per_batch, self.tokens_per_sequence = questions_per_batch, tokens_per_sequence
        self.pack_scenes, self.frame_cache = pack_scenes, frame_cache
        types = self.source.default_question_types if question_types == "default" else question_types
        self.filter = QuestionFilter(datasets, types, scene_names, subset)
        for kind in types or ():
            self.source.benchmark.check_question_type(kind)
        self.augmentation, self.perturbation = augmentation, perturbation
        self.num_workers, self.keep_in_memory, self.seed = num_workers, keep_in_memory, resolve_seed(seed)
        self.skip_failed = skip_failed
        self.source.num_frames = self.dataset([]).num_views
        for each in (self.source, self.asked):
            if each is not None and any(text is not None for text in (system_prompt, prompt_prefix, prompt_wording)):
                each.benchmark = each.benchmark.with_prompt(prompt_prefix, prompt_wording, system_prompt)

    def prepare_data(self) -> None:
        state: Any = None if self.trainer is None else self.trainer.state.fn
        stage = getattr(state, "value", state)  # "fit", and not "TrainerFn.FITTING"
        if self.asked is None and stage == "predict":
            raise InputError('predict needs --data.video clip.mp4 --data.question "What is the size of this room?"')
        if self.perturbation is not None and stage not in (None, "test"):
            raise InputError(f"--data.perturbation is for test, not for {stage}")
        if self.augmentation is not None and stage not in (None, "fit"):
            rank_zero_info(f"--data.augmentation acts in fit alone: {stage} shows the scenes as they are")
        if stage == "validate" and self.trainer is not None and self.trainer.limit_val_batches == 0:
            raise InputError("validate needs --trainer.limit_val_batches 1.0: with 0 it would validate nothing")
        if self.asked is not None and stage not in (None, "predict"):
            raise InputError(f"--data.video is for predict, not for {stage}")
        splits: tuple[Split, ...] = ("val",) if stage == "validate" else ("test",)
        if stage in (None, "fit"):
            validates = self.trainer is None or self.trainer.limit_val_batches != 0
            splits = ("train", "val") if validates else ("train",)
        self.prepare_splits(splits)

    def prepare_splits(self, splits: Collection[Split]) -> None:
        """Prepare the data of some splits; a command without a Trainer names its own."""
        with as_input_error():
            (self.asked or self.source).prepare_splits(splits)

    def scenes(self, split: Split) -> list[Scene]:
        """The scenes of a split that have a video, with the questions that the filters keep.

        Raises:
            InputError: No scene is left, or none has the cameras or depth that the model requires or learns to predict.
        """
        with as_input_error():
            kept, self.filtered, names = self.source.filtered_split(split, self.filter)
            if split != "train":  # training questions have no score
                check_questions(kept, split, self.source)
        self.missing = self.filter.matching(self.source.missing)
        missing = ""
        if self.missing:
            missing = f"videos that are missing: {len(self.missing)}, {next(iter(self.missing))} first"
        if unmatched := self.filter.unmatched([*names, *self.source.missing]):
            rank_zero_info(f"{split}: no scene meets {', '.join(unmatched)}")
        if split == "train":  # other splits have a table of results, which says so
            if missing:
                rank_zero_info(f"train: {missing}")
            for left_out in self.filter.left_out(names, self.filtered):
                rank_zero_info(f"train: {left_out}")
        source = type(self.source).__name__
        if not kept:
            found = f"{source}: the {split} split has no scene that can be read{self.filter.described()}"
            raise InputError(f"{found}; {missing}" if missing else found)
        check_requirements(kept, split, self.source, self.requirements_of(split == "train"))
        return kept

    @property
    def requirements(self) -> DataRequirements:
        """The model's requirements; empty without a model."""
        return self.requirements_of(training=False)

    def requirements_of(self, training: bool) -> DataRequirements:
        """Return the model's requirements in a training or an evaluation; empty without a model."""
        task: Any = None if self.trainer is None else self.trainer.lightning_module
        if task is None:
            return DataRequirements()
        return task.training_requirements if training else task.requirements

    def describe(self) -> dict[str, Any]:
        """The settings of the data that a result depends on."""
        return {
            "source": type(self.source).__name__,
            "num_frames": self.num_frames,
            "sampler": type(self.sampler).__name__,
            "sampler_options": known_config(self.sampler),
            "frame_pairing": type(self.frame_pairing).__name__,
            "frame_pairing_options": known_config(self.frame_pairing),
            "perturbation": to_config(self.perturbation),
            "frames_as": self.frames_as,
            "pixels": to_config(self.pixels),
            "image_pixels": to_config(self.image_pixels),
            "still_resize": to_config(self.still_resize),
            "system_prompt": self.source.benchmark.system_prompt,
            "prompt_prefix": self.source.benchmark.prefix,
            "prompt_wording": self.source.benchmark.wording,
            **asdict(self.filter),
        }

    def dataset(self, scenes: list[Scene], training: bool = False) -> SceneDataset:
        """Scenes with the frames that a test shows, or a training: whatever reads those, a cache as well, asks here."""
        return SceneDataset(
            scenes,
            self.train_sampler if training else self.sampler,
            self.num_frames,
            self.pixels,
            requirements=self.requirements_of(training),
            keep=training and self.keep_in_memory,
            frame_pairing=self.train_frame_pairing if training else self.frame_pairing,
            frames_as=self.frames_as,
            image_bounds=self.image_pixels,
            frame_cache=self.frame_cache,
            still_resize=self.still_resize,
            augmentation=self.augmentation if training else None,
        )

    @property
    def wording(self) -> Wording:
        """How questions are put into words."""
        task: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        return Wording(task.preprocessor, (self.asked or self.source).benchmark)

    def _prompt(self, question: Question) -> str:
        """The prompt of a question; empty for a task that reads scenes alone."""
        task: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        return "" if task.sequence_builder is None else self.wording.prompt(question)

    def _collate(self, kind: type[Collate], *, training: bool = False, **options: Any) -> Collate | SceneCollate:
        task: Any = self.trainer.lightning_module  # type: ignore[union-attr]
        builder = task.training_sequence_builder if training else task.sequence_builder
        if builder is None:
            return SceneCollate()
        reader = task.geometry_reader(training=training)
        return kind(self.wording, builder, self.requirements_of(training), reader, **options)

    def _ask(self, training: bool = False) -> Collate | SceneCollate:
        options: dict[str, Any] = {"questions_per_batch": self.questions_per_batch, "requires_targets": training}
        return self._collate(QuestionCollate, training=training, **options)

    def train_dataloader(self) -> ResumableLoader:
        dataset = self.dataset(self.scenes("train"), training=True)
        trainer = self.trainer
        assert trainer is not None
        asks = trainer.lightning_module.asks_in_training  # then each question has one answer
        order = TrainingOrder(
            [len(scene.questions) for scene in dataset.scenes],
            self.batch_size,
            self.questions_per_scene,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            questions_fingerprint(dataset.scenes),
            None if asks else np.concatenate([num_answers(scene.questions) for scene in dataset.scenes]),
        )
        self.order_settings = order.settings
        collate: Any
        if asks:
            collate = self._ask(training=True)
        else:
            packing = {"tokens_per_sequence": self.tokens_per_sequence, "pack_scenes": self.pack_scenes}
            collate = self._collate(TrainingCollate, training=True, **packing)
        if self.skip_failed:
            collate = SpareCollate(collate, dataset, len(dataset), self.skip_failed)
        skipped = SkippedScenes(self.skip_failed, Path(trainer.default_root_dir), trainer.global_rank)

        def position() -> TrainingPosition:  # every strategy has read the checkpoint by now
            if trainer.ckpt_path is not None:
                order.check(self.trained_settings)
            elif not (trainer.global_step or trainer.current_epoch):
                if trainer.is_global_zero:
                    skipped.forget()
                trainer.strategy.barrier()  # before another process records a scene
            return TrainingPosition.of(trainer)

        return ResumableLoader(
            dataset,
            position=position,
            receive=skipped,
            batch_sampler=order,
            collate_fn=collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def state_dict(self) -> dict[str, Any]:
        """The settings of the training order, which a resumed run must have."""
        return self.order_settings

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the settings of a checkpoint, in case that a training resumes it."""
        self.trained_settings = state_dict

    def _scene_loader(
        self, scenes: list[Scene], dataset: Dataset | None = None, answered: Collection[int] = ()
    ) -> DataLoader:
        """This rank's scenes, one per batch with all of its questions; the batch of an answered one is empty."""
        trainer = self.trainer
        assert trainer is not None
        own = balance_across_ranks([len(scene.questions) for scene in scenes], trainer.world_size)[trainer.global_rank]
        return DataLoader(
            dataset or self.dataset(scenes),
            # Lightning skips a rank without batches
            batch_sampler=[[] if scene in answered else [scene] for scene in own] or [[]],
            collate_fn=self._ask(),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a batch from pinned memory without a wait."""
        if isinstance(batch, Batch):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def val_dataloader(self) -> DataLoader:
        return self._scene_loader(self.scenes("val"))

    def test_dataloader(self) -> DataLoader:
        self.tested.read(self.scenes("test"), self._prompt, self.sampler)
        asked, rest = self.tested.remaining(self.trainer.limit_test_batches)  # type: ignore[union-attr]
        dataset, every = (self.dataset(each) for each in (rest, self.tested.scenes))
        shown = dataset if self.perturbation is None else PerturbedScenes(dataset, every, self.perturbation)
        return self._scene_loader(asked, shown, {place for place, each in enumerate(rest) if not each.questions})

    def predict_dataloader(self) -> DataLoader:
        assert self.asked is not None and self.trainer is not None  # checked by prepare_data
        if self.trainer.world_size > 1:
            raise InputError("predict asks about one scene, so it takes one process: lower --trainer.devices")
        # not `_scene_loader`: Lightning rebuilds a batch sampler for predict, which a list doesn't support
        dataset, collate = self.dataset(self.asked.scenes("test")), self._ask()
        return DataLoader(dataset, collate_fn=collate, num_workers=self.num_workers)  # type: ignore[arg-type]
