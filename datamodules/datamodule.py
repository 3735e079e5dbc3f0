"""The DataModule: scenes of any source with selected frames, and batches of their questions."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from datamodules.augmentations import Augmentation
from datamodules.chat_format import FramesAs
from datamodules.collate import Collate, KeepInStep, QuestionCollate, SceneCollate, TrainingCollate
from datamodules.dataset import SceneDataset, check_scene
from datamodules.frame_cache import FrameCache
from datamodules.perturbations import Perturbation, PerturbedScenes
from datamodules.question_sampler import (
    QuestionSampler,
    TrainingLoader,
    TrainingPosition,
    balance_across_ranks,
    check_files,
    check_resumed,
)
from datamodules.resize import PixelBounds, StillResize
from datamodules.samplers import Consecutive, FramePairing, FrameSampler, UniformSampler
from datamodules.scenes import Scene, file_size, num_answers, questions_fingerprint
from datamodules.sources import Rooms, SceneSource, SingleVideo
from datamodules.sources.base import QuestionFilter, Split
from datamodules.video import companion_name
from zoo.benchmarks import Benchmark
from zoo.configuration import Configurable, OptionEffects, known_config
from zoo.errors import InputError, check_choice, describe
from zoo.files.atomic_io import RECORD, JSONLines, read_records, write_output
from zoo.files.ownership import remove_own
from zoo.model_spec import DataSettings, ModelSpec
from zoo.seed import resolve_seed
from zoo.sequences.batch import Batch
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE

OnError = Literal["raise", "skip"]
OnDamage = Literal["raise", "show"]
MAX_SKIPPED = 0.01  # largest share of skipped training scenes
SKIPPED_SCENES = "skipped_scenes.jsonl"
MISSING = "# training scenes whose videos or images are missing\n"  # the start of MISSING_SCENES
MISSING_SCENES = "missing_scenes.txt"
FILE_SIZES = "file_sizes"  # key in a checkpoint: the size of each training scene's files
FIRST = 5  # number of missing scenes and of their folders in an error


def skipped_scenes(run: Path) -> dict[str, str]:
    """Return the error of each scene that a run's training has skipped, on any process."""
    return {record["id"]: record["error"] for record in read_records([run / SKIPPED_SCENES])}


@contextmanager
def as_input_error() -> Iterator[None]:
    """Turn a source's errors about its files into an `InputError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(describe(error)) from error


def is_limited(batches: int | float) -> bool:
    """Return whether a `limit_<stage>_batches` of the Trainer leaves out batches: 1 is one batch, 1.0 is all."""
    return isinstance(batches, int) or batches < 1


class AnswerStore(Callback, ABC):
    """A callback that keeps the answers of a test, so that an interrupted test can go on."""

    @abstractmethod
    def begin_test(self, trainer: Trainer, pl_module: LightningModule) -> Collection[str]:
        """Begin or resume a test. `VideoQADataModule.test_dataloader` calls it once scenes and weights are read.

        Returns:
            The ids of the questions that are answered already. They are not asked again.
        """


class VideoQADataModule(Configurable, LightningDataModule):
    """Load videos with questions. A video is decoded and encoded once for all of its questions.

    Args:
        source: Dataset. null uses `Rooms`.
        num_frames: Frames per video. Two frames form one temporal patch.
        sampler: Frame sampler. null uses `UniformSampler`.
        train_sampler: Frame sampler for training, such as `RandomSampler`. null uses `sampler`.
        frame_pairing: Chooses which two frames are merged into one token. null merges consecutive frames.
        train_frame_pairing: Frame pairing for training, such as `Duplicate`, with which GeoVR trains. null uses
            `frame_pairing`.
        frames_as: How frames of a video are shown. `video`: as a video, in which two frames are merged into a token.
            `image`: each as an image with one camera. `labeled_image`: each as an image, after its number from 1
            ("Frame-1: ") and before a line break. `indexed_image`: each as an image, after its number from 0, as VG-LLM
            does for ScanRefer. Images are not paired.
        system_prompt: Text of the system turn. null keeps the chat template's own (Qwen2.5-VL's says "You are a helpful
            assistant.").
        prompt_prefix: First line of the user's text, such as lmms-eval's "These are frames of a video.". null uses the
            benchmark's prefix, "" uses none.
        prompt_wording: Instruction after the question, such as `geovr` of VSI-Bench. null uses the benchmark's own.
        poses_in_prompt: Write the dataset's cameras as text before the question, for any model: poses relative to the
            first view, and the field of view. One line per temporal patch, of the camera that the model gives to it.
        pixels: Bounds of the size of a video frame.
        image_pixels: Bounds of the size of a still image. null uses the model's own.
        still_resize: How still images are resized (`FixedWidthStills`, `OriginalStills`). It replaces `image_pixels`. A
            model needs it if its geometry encoder reads images of another size than its vision encoder.
        batch_size: Sequences per training batch and rank. A sequence holds a scene with some of its questions. An epoch
            asks each question once.
        questions_per_scene: Maximum number of questions in one training sequence, drawn anew in each epoch. A scene
            that is drawn twice for a batch has twice as many.
        tokens_per_sequence: Maximum number of tokens in one training sequence with several questions. Further questions
            form another sequence of the same step. null sets no limit.
        pack_scenes: Concatenate the scenes of a training batch without padding, into sequences of at most
            `tokens_per_sequence` tokens. Each scene attends only to itself. For FlexAttention on a GPU.
        questions_per_batch: Questions about one scene that are answered at once. The scene is encoded once.
        datasets: Use only these datasets of the source (the first part of a scene's name).
        question_types: Use only questions of these types. `default` uses the source's default types, see `SceneSource`.
        scene_names: Use only these scenes: a list, or a text file with one name per line.
        subset: Number of questions, drawn from those that the other filters keep, independent of the seed. null uses
            all.
        augmentation: Random change of training scenes, such as `RandomFocalLength` or `RandomCameraErrors`. null is
            none.
        perturbation: For `test`: replace a part of the input by a wrong one, such as `OtherCameras`, to see what the
            model relies on.
        frame_cache: Keeps the selected and resized frames of each scene on disk, so that a video is decoded once for
            all epochs and runs. null decodes them each time.
        num_workers: Processes that load data. 0 uses the main process.
        keep_in_memory: Keep decoded training videos and depth in memory (for small data; requires num_workers 0 and no
            frame_cache).
        on_error: How training handles a scene that can't be read. `raise` ends the training. `skip` leaves the scene's
            answers out of the mean of their step and lists the scene in the run's skipped_scenes.jsonl; above 1 % of
            the scenes, it ends the training as well. A test always records the failed scene and goes on.
        on_missing: What a training does if videos of its questions are missing. `raise` ends it before its first step
            and lists them in missing_scenes.txt, in the current folder. `skip` trains without them. A test goes on, and
            its results count them.
        on_damage: How damaged data in a video is handled. `raise`: the scene can't be read. `show`: its frames are
            shown as the decoder guesses them. Decoders notice most damage in H.264 and MPEG-4, less in HEVC, little in
            VP9.
        timeout_s: Seconds after which a scene that is still being read counts as one that can't be read, such as a
            video on storage that no longer answers. null waits forever.
        seed: Seed of the training order and of the questions drawn in training. null uses the run's seed.
        video: For `predict`: a video file or a folder of frames, in place of the source.
        question: For `predict`: the question about the video.

    Attributes:
        option_effects: What the options change: a training, answers, both or nothing.
        trained_scenes: The scenes of a training. Empty until they are read.
        tested_scenes: The scenes of a test with all questions, without perturbation. Empty until they are read.
    """

    option_effects = OptionEffects(
        nothing=(
            *("data.num_workers", "data.keep_in_memory", "data.on_error", "data.on_missing", "data.timeout_s"),
            *("data.frame_cache", "data.source.workers", "data.questions_per_batch", "data.video", "data.question"),
        ),
        training=(
            *("data.seed", "data.augmentation", "data.source.cache", "data.sampler.cache", "data.train_sampler"),
            *("data.train_frame_pairing", "data.batch_size", "data.questions_per_scene", "data.tokens_per_sequence"),
            "data.pack_scenes",
        ),
        both=(
            *("data.source", "data.datasets", "data.question_types", "data.scene_names", "data.subset"),
            *("data.num_frames", "data.sampler", "data.frame_pairing", "data.frames_as", "data.perturbation"),
            *("data.pixels", "data.image_pixels", "data.still_resize", "data.on_damage"),
            *("data.system_prompt", "data.prompt_prefix", "data.prompt_wording", "data.poses_in_prompt"),
        ),
    )

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
        poses_in_prompt: bool = False,
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
        on_error: OnError = "raise",
        on_missing: OnError = "raise",
        on_damage: OnDamage = "raise",
        timeout_s: float | None = 600.0,
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
            ("sampler.candidates", sampler.candidates if sampler else None, TEMPORAL_PATCH_SIZE),
            ("train_sampler.candidates", train_sampler.candidates if train_sampler else None, TEMPORAL_PATCH_SIZE),
        ):
            if count is not None and count < least:
                raise InputError(f"--data.{name} {count}: at least {least}")
        if timeout_s is not None and not timeout_s > 0:
            raise InputError(f"--data.timeout_s {timeout_s:g}: above 0, or null to wait forever")
        if keep_in_memory and num_workers:
            raise InputError("keep_in_memory needs --data.num_workers 0: each worker would keep a copy of its own")
        if keep_in_memory and frame_cache is not None:
            raise InputError("keep_in_memory reads no --data.frame_cache: set --data.keep_in_memory false")
        if still_resize is not None and frame_cache is not None:
            rank_zero_info("--data.frame_cache keeps no still images of --data.still_resize: they are read each time")
        if (video is None) != (question is None):
            raise InputError("predict takes both --data.video and --data.question")
        self.source = source or Rooms()
        self.filtered = 0  # number of questions of the last split that the filters leave out
        self.missing: dict[str, int] = {}  # number of questions for each scene whose video is missing
        self.trained_scenes: list[Scene] = []
        self.tested_scenes: list[Scene] = []
        self.spec = self.training_spec = ModelSpec()  # `setup` sets the model's
        self.question_sampler: QuestionSampler | None = None
        self.resumed_settings: dict[str, Any] = {}  # from the checkpoint, see `state_dict`
        self._file_sizes: list[int] = []  # of each training scene
        self.asked: SceneSource | None = None
        if video is not None and question is not None:
            self.asked = SingleVideo(video, question)
        self.num_frames, self.sampler = num_frames, sampler or UniformSampler()
        self.train_sampler = train_sampler or self.sampler
        self.frame_pairing = frame_pairing or Consecutive()
        self.train_frame_pairing = train_frame_pairing or self.frame_pairing
        check_choice("frames_as", frames_as, FramesAs)
        self.frames_as, self.pixels, self.image_pixels = frames_as, pixels or PixelBounds(), image_pixels
        self.still_resize, self.poses_in_prompt = still_resize, poses_in_prompt
        self.batch_size, self.questions_per_scene = batch_size, questions_per_scene
        self.questions_per_batch, self.tokens_per_sequence = questions_per_batch, tokens_per_sequence
        self.pack_scenes, self.frame_cache = pack_scenes, frame_cache
        types = self.source.default_question_types if question_types == "default" else question_types
        self.filter = QuestionFilter(datasets, types, scene_names, subset)
        for kind in types or ():
            self.source.benchmark.check_question_type(kind)
        self.augmentation, self.perturbation = augmentation, perturbation
        self.num_workers, self.keep_in_memory, self.seed = num_workers, keep_in_memory, resolve_seed(seed)
        check_choice("--data.on_error", on_error, OnError)
        check_choice("--data.on_missing", on_missing, OnError)
        check_choice("--data.on_damage", on_damage, OnDamage)
        self.on_error, self.on_missing, self.on_damage, self.timeout_s = on_error, on_missing, on_damage, timeout_s
        self.source = self.source.for_frames(self.dataset([]).num_views)
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
        """Prepare the data of some splits. Commands without a Trainer call this directly."""
        with as_input_error():
            (self.asked or self.source).prepare_splits(splits)

    def setup(self, stage: str) -> None:
        """Read the model's specification once, and store the data settings in its task."""
        task: Any = None if self.trainer is None else self.trainer.lightning_module
        if not hasattr(task, "model_spec"):  # a LightningModule from elsewhere
            return
        self.spec = task.model_spec()
        config = {name: value for name, value in known_config(self).items() if name != "source"}
        task.data_settings = DataSettings(config, self.source.benchmark, self.tokens_per_sequence)
        if stage != "fit":  # do not build the teacher for an evaluation
            return
        self.training_spec = task.model_spec(training=True)
        if self.batch_size < (least := self.training_spec.least_batch_size):
            exchange = "--model.teacher.shuffled exchanges targets in a batch"
            raise InputError(f"--data.batch_size {self.batch_size}: {exchange} and needs {least} or more")
        if self.training_spec.has_posed_labels and self.augmentation and self.augmentation.has_camera_errors:
            raise InputError(
                f"--data.augmentation {type(self.augmentation).__name__}: --model.objectives would learn what --model."
                "geometry predicts from the wrong cameras: take --model.camera_source dataset, or a geometry encoder "
                "that reads frames alone"
            )

    def scenes(self, split: Split) -> list[Scene]:
        """Return the scenes of a split that have a video, with the questions that the filters keep.

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
        if split == "train":  # in other splits, the table of results says so
            if missing:
                rank_zero_info(f"train: {missing}")
            for left_out in self.filter.left_out(names, self.filtered):
                rank_zero_info(f"train: {left_out}")
        source = type(self.source).__name__
        if not kept:
            found = f"{source}: the {split} split has no scene that can be read{self.filter.described()}"
            raise InputError(f"{found}; {missing}" if missing else found)
        check_split(kept, split, self.source, self.training_spec if split == "train" else self.spec)
        if split != "train" and (unusable := unusable_scenes(kept, self.spec)):
            rank_zero_warn(f"{split}: {describe_unusable(unusable, kept)}; their questions score 0")
        if self.poses_in_prompt and all(scene.cameras is None for scene in kept):
            put = _put_beside(kept, "cameras.json")
            raise InputError(f"--data.poses_in_prompt: {source} has no cameras in the {split} split: {put}leave it out")
        return kept

    def dataset(self, scenes: list[Scene], training: bool = False, spec: ModelSpec | None = None) -> SceneDataset:
        """Build the dataset for training or evaluation. Caches use the same method, so that they see the same frames.

        Args:
            scenes: The scenes.
            training: Whether to use the options for training, such as `train_sampler`.
            spec: What is read from the scenes. None reads what the model needs.
        """
        return SceneDataset(
            scenes,
            self.train_sampler if training else self.sampler,
            self.num_frames,
            self.pixels,
            spec=spec or (self.training_spec if training else self.spec),
            keep=training and self.keep_in_memory,
            frame_pairing=self.train_frame_pairing if training else self.frame_pairing,
            frames_as=self.frames_as,
            image_bounds=self.image_pixels,
            frame_cache=self.frame_cache,
            still_resize=self.still_resize,
            augmentation=self.augmentation if training else None,
            timeout_s=self.timeout_s,
            shows_damage=self.on_damage == "show",
        )

    @property
    def _benchmark(self) -> Benchmark:
        return (self.asked or self.source).benchmark

    def _ask(self, training: bool = False) -> Collate | SceneCollate:
        """Return the collate function that turns scenes into a batch with prompts."""
        spec = self.training_spec if training else self.spec
        if spec.preprocessor is None:
            return SceneCollate()
        return QuestionCollate(
            spec,
            self._benchmark,
            questions_per_batch=self.questions_per_batch,
            requires_targets=training,
            poses_in_prompt=self.poses_in_prompt,
        )

    def train_dataloader(self) -> TrainingLoader:
        trainer = self.trainer
        assert trainer is not None
        asks = self.training_spec.asks_in_training  # the model then generates answers, and each question counts once
        if asks and self.pack_scenes:
            raise InputError("--data.pack_scenes: GRPO has sequences of its own for each scene, leave it out")
        scenes = self.trained_scenes = self.scenes("train")
        self.refuse_incomplete(scenes)
        self._file_sizes = [file_size(scene) for scene in scenes]
        if (asks or self.training_spec.preprocessor is None) and any(scene.is_text for scene in scenes):
            raise InputError("the train split has rows of plain text, and this training needs a video: leave them out")
        dataset = self.dataset(scenes, training=True)
        sampler = self.question_sampler = QuestionSampler(
            [len(scene.questions) for scene in dataset.scenes],
            self.batch_size,
            self.questions_per_scene,
            self.seed,
            trainer.global_rank,
            trainer.world_size,
            questions_fingerprint(dataset.scenes),
            None if asks else np.concatenate([num_answers(scene.questions) for scene in dataset.scenes]),
            np.array([dataset.num_patches(scene) for scene in dataset.scenes]),
            self._training_position,
            skips_failed=self.on_error == "skip",
        )
        collate: Any
        if asks or self.training_spec.preprocessor is None:
            collate = self._ask(training=True)
        else:
            collate = TrainingCollate(
                self.training_spec,
                self._benchmark,
                tokens_per_sequence=self.tokens_per_sequence,
                pack_scenes=self.pack_scenes,
                poses_in_prompt=self.poses_in_prompt,
            )
        if self.on_error == "skip":
            collate = KeepInStep(collate, dataset, num_spares=min(len(dataset), 1 + int(MAX_SKIPPED * len(dataset))))
        return TrainingLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def refuse_incomplete(self, scenes: Sequence[Scene]) -> None:
        """Raise an InputError if training scenes lack videos, cameras or depth and the training needs them all.

        All scenes without a video are listed in a file.
        """
        unusable, reasons = unusable_scenes(scenes, self.training_spec), list[str]()
        absent = [*self.missing]
        if absent and self.on_missing == "raise":
            reasons.append(self._describe_missing(absent, len(scenes)))
        if len(unusable) > (MAX_SKIPPED * len(scenes) if self.on_error == "skip" else 0):
            remedy = f"--data.on_error skip leaves out at most {MAX_SKIPPED:.0%}, --data.scene_names chooses scenes"
            reasons.append(f"train: {describe_unusable(unusable, scenes)}; {remedy}")
        if reasons:
            raise InputError("; ".join(reasons))

    def _describe_missing(self, absent: Sequence[str], num_scenes: int) -> str:
        """Describe the training's scenes whose files are missing, and list them in a file."""
        if self.trainer is None or self.trainer.is_global_zero:
            write_output(Path(MISSING_SCENES), MISSING + "".join(f"{name}\n" for name in absent), MISSING, option="")
        folders = Counter(name.rpartition("/")[0] or "." for name in absent).most_common()
        counts = ", ".join(f"{count} in {folder}" for folder, count in folders[:FIRST])
        more = f", {len(folders) - FIRST} more folders" if len(folders) > FIRST else ""
        return (
            f"the videos or images of {len(absent)} training scenes are missing, and {num_scenes} scenes are there: "
            f"{counts}{more}; first {', '.join(absent[:FIRST])}; {MISSING_SCENES} lists all: fetch them, or train "
            "without them: --data.on_missing skip"
        )

    def _training_position(self) -> TrainingPosition:
        """Return where an iteration begins. It is called after the checkpoint is restored."""
        trainer = self.trainer
        assert trainer is not None
        if trainer.ckpt_path is not None and self.resumed_settings:
            now, names = self.state_dict(), [scene.name for scene in self.trained_scenes]
            sizes = now.pop(FILE_SIZES)
            check_resumed(self.resumed_settings, now)
            check_files(self.resumed_settings.get(FILE_SIZES, sizes), sizes, names)
        elif trainer.ckpt_path is None and trainer.global_step == 0:
            if trainer.is_global_zero:  # remove the list of an earlier training
                remove_own(Path(trainer.default_root_dir, SKIPPED_SCENES), RECORD)
            trainer.strategy.barrier()  # before another process adds a scene to the list
        return TrainingPosition.of(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings that determine the data of each step. A resumed run must have the same."""
        if self.question_sampler is None or self.trainer is None:
            return {}
        return {
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            **self.question_sampler.settings,
            "batches_per_epoch": self.trainer.num_training_batches,
            FILE_SIZES: self._file_sizes,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the settings of a checkpoint. They are compared when training resumes."""
        self.resumed_settings = state_dict

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Handle training scenes that can't be read: raise, or list them, depending on `on_error`."""
        if isinstance(batch, Batch) and batch.failed and batch.step is not None:
            self._take_failed(batch, {record["scene"]: record["error"] for record in batch.failed})
        return batch

    def _take_failed(self, batch: Batch, failed: dict[str, str]) -> None:
        reason = next(iter(failed.values()))
        if self.on_error == "raise":
            raise InputError(f"{reason}; --data.on_error skip trains without this scene")
        assert self.trainer is not None and self.question_sampler is not None
        run, num_scenes = Path(self.trainer.default_root_dir), self.question_sampler.num_scenes
        known = skipped_scenes(run)  # listed by any process
        new = {scene: error for scene, error in failed.items() if scene not in known}
        if (count := len(known) + len(new)) > MAX_SKIPPED * num_scenes or not batch.scenes:
            raise InputError(
                f"{reason}; {count} of {num_scenes} training scenes can't be used, and --data.on_error skip leaves out "
                f"at most {MAX_SKIPPED:.0%}: repair them, or leave them out by --data.scene_names"
                + (f"; {run / SKIPPED_SCENES} lists the others" if known else "")
            )
        if new:
            run.mkdir(parents=True, exist_ok=True)
            file = JSONLines(run / SKIPPED_SCENES)
            file.append([{"id": scene, "error": error} for scene, error in new.items()])
            file.close()
        for error in new.values():  # it begins with the scene's name
            warnings.warn(f"training goes on without {error}", stacklevel=2)

    def _scene_loader(
        self, scenes: list[Scene], dataset: Dataset | None = None, answered: Collection[int] = ()
    ) -> DataLoader:
        """Return this rank's scenes, one per batch with all questions. The batch of an answered scene is empty."""
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
        """Copy a batch from pinned memory without blocking."""
        if isinstance(batch, Batch):
            return batch.to(device, non_blocking=True)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def val_dataloader(self) -> DataLoader:
        return self._scene_loader(self.scenes("val"))

    def test_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        self.tested_scenes = self.scenes("test")
        stores = [each for each in self.trainer.callbacks if isinstance(each, AnswerStore)]  # type: ignore[attr-defined]
        answered = {id for each in stores for id in each.begin_test(self.trainer, self.trainer.lightning_module)}
        scenes = [scene for scene in self.tested_scenes if scene.questions]
        rest = [replace(s, questions=tuple(q for q in s.questions if q.id not in answered)) for s in scenes]
        if not is_limited(self.trainer.limit_test_batches):  # a limit counts batches of answered scenes too
            scenes = rest = [scene for scene in rest if scene.questions]
        dataset, every = self.dataset(rest), self.dataset(self.tested_scenes)
        shown = dataset if self.perturbation is None else PerturbedScenes(dataset, every, self.perturbation)
        return self._scene_loader(scenes, shown, {place for place, each in enumerate(rest) if not each.questions})

    def predict_dataloader(self) -> DataLoader:
        assert self.asked is not None and self.trainer is not None  # checked by prepare_data
        if self.trainer.world_size > 1:
            raise InputError("predict asks about one scene, so it takes one process: lower --trainer.devices")
        # not `_scene_loader`: Lightning rebuilds a batch sampler for predict, which a list doesn't support
        dataset, collate = self.dataset(self.asked.scenes("test")), self._ask()
        return DataLoader(dataset, collate_fn=collate, num_workers=self.num_workers)  # type: ignore[arg-type]


# ---- Checks of a split ----------------------------------------------------------------------------------------------


def check_split(scenes: Sequence[Scene], split: Split, source: SceneSource, spec: ModelSpec) -> None:
    """Check that some scene has the cameras that the model reads and, in training, the targets of its objectives.

    Warn if questions ask for meters while the model's lengths have an arbitrary unit in each scene.

    Args:
        scenes: The scenes of the split, with their selected questions. At least one.
        split: The split.
        source: The source of the scenes.
        spec: What the model needs.

    Raises:
        InputError: No scene has the cameras or a target, the benchmark lacks a question type that the model's settings
            name, or no question has a type that a reward can score.
    """
    name = type(source).__name__
    if spec.requires_cameras and all(scene.cameras is None for scene in scenes):
        raise InputError(
            f"{name}: no scene of the {split} split has cameras: {_put_beside(scenes, 'cameras.json')}predict them: "
            "--model.geometry PretrainedVGGT --model.camera_source auto"
        )
    for target in spec.required_targets if split == "train" else ():
        if all(getattr(scene, target) is None for scene in scenes):
            raise InputError(
                f"{name}: no scene of the train split has {target}, which --model.objectives are to predict: "
                f"{_put_beside(scenes, 'cameras.json' if target == 'cameras' else target)}take the geometry encoder's: "
                "--model.camera_source predicted, without DatasetPoses"
            )
    for kind in spec.question_types if split == "train" else ():
        # the sources of a mixture may have other benchmarks
        if kind not in source.benchmark.question_types and kind not in _types(scenes):
            source.benchmark.check_question_type(kind)
    scored = source.benchmark.question_types
    if spec.typed_questions and split == "train" and not any(kind in scored for kind in _types(scenes)):
        raise InputError(
            f"{name}: no question of the train split has a type of {source.benchmark.name}, so that no reward applies: "
            "give --model.algorithm.rewards that need none, such as AnswerFormat with a pattern"
        )
    if (unit := spec.arbitrary_unit) and any(kind in source.benchmark.metric_types for kind in _types(scenes)):
        rank_zero_warn(
            f"{unit} has lengths in a unit of each scene's own, and questions ask for meters: align predicted cameras "
            "by --model.geometry.scale_from DatasetPoses or MetricModel; DatasetGeometry has 3D tokens in meters"
        )


def unusable_scenes(scenes: Sequence[Scene], spec: ModelSpec) -> dict[str, str]:
    """Return the error of each scene that lacks cameras or depth that the model reads. No file is opened."""
    errors = {}
    for scene in scenes:
        try:
            check_scene(scene, spec)
        except InputError as error:
            errors[scene.name] = str(error)
    return errors


def describe_unusable(errors: Mapping[str, str], scenes: Sequence[Scene]) -> str:
    """Describe scenes that can't be used, with the error of the first."""
    first, *_ = errors.values()
    return f"{len(errors)} of {len(scenes)} scenes can't be used, {', '.join([*errors][:FIRST])} first: {first}"


def _put_beside(scenes: Sequence[Scene], suffix: str) -> str:
    """Return the hint to put a file beside the first video. It is empty for still images, which have no such file."""
    video = next((scene.video for scene in scenes if not (scene.images or scene.is_text)), None)
    return "" if video is None else f"put {companion_name(video)}.{suffix} beside {video} etc., or "


def _types(scenes: Sequence[Scene]) -> Iterator[str]:
    """Yield the type of each question lazily, because a file of conversations has many thousands."""
    return (question.question_type for scene in scenes for question in scene.questions)


def check_questions(scenes: Sequence[Scene], split: Split, source: SceneSource) -> None:
    """Raise an InputError for questions that can't be scored, because their type is unknown or their id repeats."""
    asked = [question for scene in scenes for question in scene.questions]
    for kind in {question.question_type for question in asked if question.question_type}:
        source.benchmark.check_question_type(kind)
    (id, count), *_ = Counter(question.id for question in asked).most_common(1) or [("", 0)]
    if count > 1:  # answers are identified by the id
        raise InputError(f"{count} questions of the {split} split have the id {id!r}: give each its own")
