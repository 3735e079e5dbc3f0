"""Turn loaded scenes into a batch. This runs in the processes that load data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.chat_format import ChatFormat, Content, media_of
from datamodules.dataset import format_scene_error
from datamodules.question_sampler import TrainingItem
from datamodules.resize import resize_part
from datamodules.scenes import Question, RawQuestion, num_answers
from zoo.benchmarks import Benchmark
from zoo.cameras.scene_geometry import SceneGeometry
from zoo.errors import SCENE_FAULTS, InputError
from zoo.geometry.cache import STILLS_OF_ANOTHER_GRID
from zoo.model_spec import ModelSpec
from zoo.sequence_builder import SequenceBuilder, shown_by
from zoo.sequences.batch import Batch, OptimizerStep, Prompt, Record, Sequences
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import LoadedScene, PreparedScene
from zoo.sequences.packing import IGNORED, Row

BLANK = RawQuestion("blank", "", "?", ".")


class Collate(ABC):
    """Turn loaded scenes with their questions into a batch.

    A scene or question that can't be used becomes a record of `Batch.failed` with its error.

    Args:
        spec: What the model needs from the data.
        benchmark: Defines the wording of the questions. None uses VSI-Bench.
        requires_targets: Whether a scene is an error if its training targets could not be read.
        poses_in_prompt: Whether the prompt has the cameras as text. A scene without cameras is an error.
    """

    def __init__(
        self,
        spec: ModelSpec,
        benchmark: Benchmark | None = None,
        *,
        requires_targets: bool = False,
        poses_in_prompt: bool = False,
    ) -> None:
        assert spec.preprocessor is not None, "a model that reads scenes alone takes `SceneCollate`"
        self.spec, self.builder = spec, SequenceBuilder(spec)
        self.preprocessor = spec.preprocessor
        self.chat_format = ChatFormat(self.preprocessor, benchmark)
        self.requires_targets, self.poses_in_prompt = requires_targets, poses_in_prompt

    def __call__(self, loaded: Sequence[LoadedScene]) -> Batch:
        scenes: list[PreparedScene] = []
        rows: list[Row] = []
        scene_of: list[int] = []
        records: list[Record] = []
        failed: list[Record] = []
        counts: list[int] = []
        text_counts: list[int] = []
        for scene in loaded:
            if unreadable := scene.error or (self.requires_targets and scene.target_error):
                failed += [_failure(scene, question, unreadable) for question in scene.questions]
                continue
            # 1. The scene. Text has none.
            prepared, media = None, list[Content]()
            try:
                if not scene.is_text:
                    prepared = self.prepare(scene)
                    self.spec.check_cameras(prepared)
                    media = [*self.media(scene, prepared)]
            except SCENE_FAULTS as error:
                reason = format_scene_error(scene.name, error)
                failed += [_failure(scene, question, reason) for question in scene.questions]
                continue
            # 2. One row per question, without those that are too long or hold special tokens.
            usable = []
            for question in scene.questions:
                try:
                    row, prompt = self._row(scene, question, prepared, media)
                except SCENE_FAULTS as error:
                    failed.append(_failure(scene, question, format_scene_error(scene.name, error)))
                    continue
                usable.append(question)
                rows.append(row)
                records.append(record(scene, question, prompt))
                scene_of.append(len(scenes) if prepared is not None else -1 - len(text_counts))
            if scene.questions and not usable:
                continue
            if prepared is not None:
                scenes.append(prepared)
            count = self._num_answers(replace(scene, questions=tuple(usable)))
            (text_counts if prepared is None else counts).append(count)
        # 3. Sequences.
        sequences, prompts = self._build(rows, scene_of, scenes) if rows else (None, [])
        counts += text_counts
        failed_answers = sum(map(self._num_answers, loaded)) - sum(counts)
        vision, step = self.builder.vision(scenes), step_of(loaded)
        return Batch(scenes, vision, sequences, prompts, records, failed, counts, failed_answers, step)

    def prepare(self, loaded: LoadedScene) -> PreparedScene:
        """Cut the frames into patches, merge the cameras per temporal patch, and drop what the model does not read."""
        assert loaded.frames is not None
        pixel_values, grid_thw = self.preprocessor.cut_patches(loaded.frames)
        loaded = self._shown(loaded, grid_thw.tolist()).change_geometry(SceneGeometry.without_invalid_cameras)
        spec, other, frames, geometry = self.spec, loaded.geometry_override, loaded.seen_by_geometry, loaded.geometry
        cameras, cached = self.builder.merge_cameras(geometry), None
        if spec.geometry_reader is not None:
            if loaded.geometry_frames is not None and spec.geometry_reader.is_resampled:
                raise InputError(STILLS_OF_ANOTHER_GRID)
            cached = spec.geometry_reader.read(
                frames, geometry, loaded.kind, has_cameras=cameras is not None, window=loaded.vision_window
            )
        steps, height, width = grid_thw.tolist()
        token_side = spec.frames.token_side((steps, height, width))
        return PreparedScene.of(
            loaded,
            pixel_values=pixel_values,
            grid_thw=(steps, height, width),
            token_side=token_side,
            frames=frames if spec.requires_posed_frames or (spec.requires_frames and cached is None) else None,
            seconds_per_grid=None if spec.seconds == "nominal" else loaded.seconds_per_grid,
            geometry=geometry,
            cached_geometry=cached,
            cameras=cameras,
            geometry_override=self.prepare(other) if isinstance(other, LoadedScene) else other,
            target_views=self._prepare_targets(loaded, token_side),
        )

    def _shown(self, loaded: LoadedScene, grid_thw: Sequence[int]) -> LoadedScene:
        """Return a scene whose frames, cameras and depth are of the part that its visual tokens show.

        Raises:
            InputError: The images were resized for a geometry encoder already.
        """
        assert loaded.frames is not None
        window, rules = self.preprocessor.shown_window(*loaded.frames.shape[-2:]), self.spec.frames
        if window is None:
            return loaded
        if loaded.geometry_frames is not None:
            raise InputError("--data.still_resize: this backbone resizes images itself: set it to null")
        height, width = (side * rules.patch_size for side in grid_thw[1:])
        frames = resize_part(loaded.frames[::TEMPORAL_PATCH_SIZE], window, (height, width))
        loaded = replace(loaded, frames=frames.repeat_interleave(TEMPORAL_PATCH_SIZE, 0))
        return loaded.change_geometry(lambda geometry: window.crop(geometry, (height, width)))

    def _prepare_targets(self, loaded: LoadedScene, token_side: int) -> PreparedScene | None:
        """Prepare the target views of a scene, with patches only if their 2D tokens are targets.

        `token_side` is the scene's, because tokens are compressed by the number of its views.
        """
        views, wanted = loaded.target_views, self.spec.target_views
        if views is None or wanted is None:
            return None
        assert views.frames is not None and loaded.frames is not None
        pixel_values, grid_thw = self.preprocessor.cut_patches(views.frames)
        views = self._shown(views, grid_thw.tolist())
        assert views.frames is not None
        steps, height, width = grid_thw.tolist()
        return PreparedScene.of(
            views,
            pixel_values=pixel_values if wanted.tokens else None,
            grid_thw=(steps, height, width),
            token_side=token_side,
            frames=torch.cat((views.frames, loaded.frames))[::TEMPORAL_PATCH_SIZE],
            cameras=self.builder.merge_cameras(views.geometry),
        )

    def media(self, loaded: LoadedScene, prepared: PreparedScene) -> Sequence[Content]:
        """Return the message content of each medium of a scene, the cameras included if prompts have them."""
        if self.poses_in_prompt and prepared.cameras is None:
            raise InputError(
                f"no poses of the frames of {prepared.name} for --data.poses_in_prompt: give it a cameras.json, or "
                "take a sampler that selects by poses"
            )
        return media_of(loaded, prepared.cameras if self.poses_in_prompt else None)

    def _row(
        self, scene: LoadedScene, question: Question, prepared: PreparedScene | None, media: Sequence[Content]
    ) -> tuple[Row, str]:
        """Return the tokens of a question, and its prompt as text."""
        self.chat_format.check(question)
        texts = self._texts(question, media)
        grids = () if prepared is None else prepared.media_grids
        tokens = self.preprocessor.tokenize(texts, grids, self.spec.extra_tokens, scene.frame_times)
        labels = tokens.labels if scene.is_supervised else torch.full_like(tokens.labels, IGNORED)
        return Row.of(tokens.input_ids, labels), texts[0]

    def _num_answers(self, scene: LoadedScene) -> int:
        """Count the answers about a scene that enter the loss."""
        return _count_answers(scene)

    @abstractmethod
    def _texts(self, question: Question, media: Sequence[Content]) -> list[str]:
        """Return the chat about a question."""

    @abstractmethod
    def _build(
        self, rows: list[Row], scene_of: list[int], scenes: list[PreparedScene]
    ) -> tuple[Sequences | None, list[Prompt]]:
        """Build the sequences or the prompts of a batch."""


class TrainingCollate(Collate):
    """Build training sequences, in which the answers are supervised.

    Args:
        tokens_per_sequence: Maximum number of tokens of a sequence with several questions. None sets no limit.
        pack_scenes: Put several scenes into a sequence.
        parts: Arguments of `Collate`.

    Raises:
        InputError: The decoder does not support several scenes in a sequence.
    """

    def __init__(
        self, *parts: Any, tokens_per_sequence: int | None = None, pack_scenes: bool = False, **named_parts: Any
    ) -> None:
        super().__init__(*parts, requires_targets=True, **named_parts)
        self.tokens_per_sequence, self.pack_scenes = tokens_per_sequence, pack_scenes
        if pack_scenes:
            self.spec.check_scene_packing()

    def __call__(self, loaded: Sequence[LoadedScene]) -> Batch:
        """Build a batch. One of text alone also shows a blank image, from which nothing is learned.

        So each process uses the same parts in each step, as DDP and FSDP2 require: the vision encoder and what follows
        it have zero-valued gradients.
        """
        batch = super().__call__(loaded)
        if batch.sequences is not None and not batch.scenes:
            return super().__call__([*loaded, self.blank(loaded[0])])
        return batch

    def blank(self, like: LoadedScene) -> LoadedScene:
        """Return a black image with a camera and depth, in the step of another scene. Some families read no videos."""
        side = 2 * self.spec.frames.token_px
        both = torch.eye(4, dtype=torch.float64).repeat(TEMPORAL_PATCH_SIZE, 1, 1)
        depth = torch.ones(TEMPORAL_PATCH_SIZE, side, side)
        return LoadedScene(
            BLANK.id,
            (BLANK,),
            torch.zeros(TEMPORAL_PATCH_SIZE, 3, side, side, dtype=torch.uint8),
            kind="image",
            frame_indices=(0,) * TEMPORAL_PATCH_SIZE,
            geometry=SceneGeometry(world_to_camera=both, K_normalized=both[:, :3, :3], depth=depth),
            question_types=like.question_types,
            is_supervised=False,
            step=like.step,
        )

    def _texts(self, question: Question, media: Sequence[Content]) -> list[str]:
        return self.chat_format.chat(question, media, with_answers=True)

    def _row(
        self, scene: LoadedScene, question: Question, prepared: PreparedScene | None, media: Sequence[Content]
    ) -> tuple[Row, str]:
        row, prompt = super()._row(scene, question, prepared, media)
        if len(row.input_ids) > (limit := self.spec.context_length):
            raise InputError(
                f"question {question.id} has {len(row.input_ids)} tokens, more than the {limit} of the model's "
                "context: lower --data.num_frames or --data.pixels.max_pixels"
            )
        return row, prompt

    def _build(
        self, rows: list[Row], scene_of: list[int], scenes: list[PreparedScene]
    ) -> tuple[Sequences | None, list[Prompt]]:
        return self.builder.training(
            rows, scene_of, scenes, max_tokens=self.tokens_per_sequence, packs_scenes=self.pack_scenes
        ), []


class QuestionCollate(Collate):
    """Build prompts. The questions about a scene follow one shared prefix.

    Args:
        questions_per_batch: Questions that are answered at once.
        parts: Arguments of `Collate`.
    """

    def __init__(self, *parts: Any, questions_per_batch: int = 8, **named_parts: Any) -> None:
        super().__init__(*parts, **named_parts)
        self.questions_per_batch = questions_per_batch

    def _num_answers(self, scene: LoadedScene) -> int:
        return len(scene.questions) if scene.is_supervised else 0  # later turns of a conversation are not asked

    def _texts(self, question: Question, media: Sequence[Content]) -> list[str]:
        return self.chat_format.chat(question, media)

    def _build(
        self, rows: list[Row], scene_of: list[int], scenes: list[PreparedScene]
    ) -> tuple[Sequences | None, list[Prompt]]:
        prompts = [row.input_ids.tolist() for row in rows]
        return None, self.builder.prompts(prompts, shown_by(scene_of), scenes, self.questions_per_batch)


class SceneCollate:
    """Build batches of scenes without questions (frames, cameras and depth), for a model that reads no text."""

    def __call__(self, loaded: Sequence[LoadedScene]) -> Batch:
        failed = [
            _failure(scene, question, scene.error) for scene in loaded if scene.error for question in scene.questions
        ]
        readable = [scene for scene in loaded if scene.error is None]
        scenes = [
            PreparedScene.of(scene, grid_thw=(len(scene.frame_indices or ()) // TEMPORAL_PATCH_SIZE, 0, 0))
            for scene in readable
        ]
        counts = [_count_answers(scene) for scene in readable]
        failed_answers = sum(map(_count_answers, loaded)) - sum(counts)
        return Batch(scenes, failed=failed, num_answers=counts, failed_answers=failed_answers, step=step_of(loaded))


def step_of(loaded: Sequence[LoadedScene]) -> OptimizerStep | None:
    """Return the optimizer step to which a batch belongs."""
    return loaded[0].step if loaded else None


class KeepInStep:
    """Collate training batches so that every process has a batch in every step, even if its scenes can't be read.

    A batch without a usable scene gets another scene as padding, which does not enter the loss.

    Args:
        collate: Turns loaded scenes into a batch.
        dataset: Scenes by `TrainingItem`.
        num_spares: Number of other scenes to try.
    """

    def __init__(
        self, collate: Callable[[Sequence[LoadedScene]], Batch], dataset: Dataset[LoadedScene], num_spares: int
    ) -> None:
        self.collate, self.dataset, self.num_spares = collate, dataset, num_spares

    def __call__(self, loaded: Sequence[LoadedScene]) -> Batch:
        batch = self.collate(loaded)
        for scene in range(self.num_spares):
            if batch.scenes:
                break
            loaded = [*loaded, self.dataset[TrainingItem(scene, (0,), is_padding=True)]]
            batch = self.collate(loaded)
        return batch


def record(scene: LoadedScene, question: Question, prompt: str) -> Record:
    """Return a question's record without prediction and score. `unmeasured` says why objectives have no error."""
    return {
        "id": question.id,
        "scene": scene.name,
        "question_type": question.question_type,
        "question": question.question,
        "prompt": prompt,
        "ground_truth": question.ground_truth,
        "frames": list(scene.frame_indices or ()),
        "error": scene.error,
        **({"unmeasured": scene.target_error} if scene.target_error else {}),
    }


def _count_answers(scene: LoadedScene) -> int:
    """Count the answers about a scene that enter the loss."""
    return int(num_answers(scene.questions).sum()) if scene.is_supervised else 0


def _failure(scene: LoadedScene, question: Question, error: str | None) -> Record:
    return {**record(scene, question, ""), "error": error, "prediction": ""}
