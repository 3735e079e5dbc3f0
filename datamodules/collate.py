"""Turns loaded scenes into a batch, in data workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset

from datamodules.chat_format import ChatFormat, media_of
from datamodules.question_sampler import TrainingItem
from datamodules.scenes import Question, num_answers
from zoo.benchmarks import Benchmark
from zoo.errors import SCENE_FAULTS, InputError, describe_fault
from zoo.geometry.cache import STILLS_OF_ANOTHER_GRID
from zoo.model_spec import ModelSpec
from zoo.sequence_builder import SequenceBuilder
from zoo.sequences.batch import Batch, OptimizerStep, Prompt, Record, Sequences
from zoo.sequences.layout import TEMPORAL_PATCH_SIZE
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import IGNORED, Row


class Collate(ABC):
    """Turn loaded scenes with their questions into a batch.

    A scene or question that can't be used becomes a record of `Batch.failed`: its fault travels as a value.

    Args:
        spec: What the model needs.
        benchmark: Words the questions; None is VSI-Bench.
        requires_targets: Whether a scene whose training targets could not be read is an error.
    """

    def __init__(self, spec: ModelSpec, benchmark: Benchmark | None = None, *, requires_targets: bool = False) -> None:
        assert spec.preprocessor is not None, "a model that reads scenes alone takes `SceneCollate`"
        self.spec, self.builder = spec, SequenceBuilder(spec)
        self.preprocessor = spec.preprocessor
        self.chat_format = ChatFormat(self.preprocessor, benchmark)
        self.requires_targets = requires_targets

    def __call__(self, loaded: Sequence[LoadedScene]) -> Batch:
        scenes: list[LoadedScene] = []
        rows: list[Row] = []
        scene_of: list[int] = []
        records: list[Record] = []
        failed: list[Record] = []
        counts: list[int] = []
        for scene in loaded:
            asked = list(scene.questions)
            try:
                # 1. Questions, without those that hold special tokens.
                if scene.error is not None:
                    raise InputError(scene.error)
                refusals = [self.chat_format.refusal(question) for question in scene.questions]
                asked = [q for q, error in zip(scene.questions, refusals, strict=True) if not error]
                failed += [_failure(scene, q, e) for q, e in zip(scene.questions, refusals, strict=True) if e]
                # 2. The scene.
                prepared = self.prepare(scene)
                self.spec.check_cameras(prepared)
            except SCENE_FAULTS as error:
                reason = describe_fault(error)
                failed += [_failure(scene, question, reason) for question in asked]
                continue
            # 3. One row per question, without those that are too long.
            usable = []
            for question in asked:
                try:
                    row, prompt = self._row(scene, question, prepared)
                except SCENE_FAULTS as error:
                    failed.append(_failure(scene, question, describe_fault(error)))
                    continue
                usable.append(question)
                rows.append(row)
                records.append(record(scene, question, prompt))
                scene_of.append(len(scenes))
            if scene.questions and not usable:
                continue
            scenes.append(prepared)
            counts.append(self._num_answers(replace(scene, questions=tuple(usable))))
        # 4. Sequences.
        sequences, prompts = self._build(rows, scene_of, scenes) if rows else (None, [])
        failed_answers = sum(map(self._num_answers, loaded)) - sum(counts)
        vision, step = self.builder.vision(scenes), step_of(loaded)
        return Batch(scenes, vision, sequences, prompts, records, failed, counts, failed_answers, step)

    def prepare(self, loaded: LoadedScene) -> LoadedScene:
        """Cut the patches of a scene, merge its cameras, and leave out what the model does not read."""
        if self.requires_targets and loaded.target_error is not None:
            raise InputError(loaded.target_error)
        assert loaded.frames is not None
        pixel_values, grid_thw = self.preprocessor.cut_patches(loaded.frames)
        spec, other, frames = self.spec, loaded.geometry_override, loaded.seen_by_geometry
        geometry = None if loaded.geometry is None else loaded.geometry.without_invalid_cameras()
        cameras, cached = self.builder.merge_cameras(geometry), None
        if spec.geometry_reader is not None:
            if loaded.geometry_frames is not None and spec.geometry_reader.is_resampled:
                raise InputError(STILLS_OF_ANOTHER_GRID)
            cached = spec.geometry_reader.read(
                frames, geometry, loaded.kind, has_cameras=cameras is not None, window=loaded.vision_window
            )
        steps, height, width = grid_thw.tolist()
        return replace(
            loaded,
            questions=(),
            frames=frames if spec.requires_frames and cached is None else None,
            geometry_frames=None,
            pixel_values=pixel_values,
            grid_thw=(steps, height, width),
            frame_times=None,
            seconds_per_grid=None if spec.seconds == "nominal" else loaded.seconds_per_grid,
            geometry=geometry,
            cached_geometry=cached,
            cameras=cameras,
            geometry_override=self.prepare(other) if isinstance(other, LoadedScene) else other,
        )

    def _row(self, scene: LoadedScene, question: Question, prepared: LoadedScene) -> tuple[Row, str]:
        """The tokens of a question, and its prompt as text."""
        texts = self._texts(scene, question)
        tokens = self.preprocessor.tokenize(texts, prepared.media_grids, self.spec.extra_tokens, scene.frame_times)
        labels = tokens.labels if scene.is_supervised else torch.full_like(tokens.labels, IGNORED)
        return Row.of(tokens.input_ids, labels), texts[0]

    def _num_answers(self, scene: LoadedScene) -> int:
        """The answers that are learned from."""
        return _count_answers(scene)

    @abstractmethod
    def _texts(self, scene: LoadedScene, question: Question) -> list[str]:
        """The chat about a question."""

    @abstractmethod
    def _build(
        self, rows: list[Row], scene_of: list[int], scenes: list[LoadedScene]
    ) -> tuple[Sequences | None, list[Prompt]]:
        """The sequences or the prompts of a batch."""


class TrainingCollate(Collate):
    """Append the answers, which are supervised.

    Args:
        tokens_per_sequence: Most tokens of a sequence with several questions; None is no bound.
        pack_scenes: Put several scenes into a sequence.
        parts: See `Collate`.

    Raises:
        InputError: A decoder in which scenes can't share a sequence.
    """

    def __init__(
        self, *parts: Any, tokens_per_sequence: int | None = None, pack_scenes: bool = False, **named_parts: Any
    ) -> None:
        super().__init__(*parts, requires_targets=True, **named_parts)
        self.tokens_per_sequence, self.pack_scenes = tokens_per_sequence, pack_scenes
        if pack_scenes:
            self.spec.check_scene_packing()

    def _texts(self, scene: LoadedScene, question: Question) -> list[str]:
        return self.chat_format.chat(question, media_of(scene), with_answers=True)

    def _row(self, scene: LoadedScene, question: Question, prepared: LoadedScene) -> tuple[Row, str]:
        row, prompt = super()._row(scene, question, prepared)
        if len(row.input_ids) > (limit := self.spec.context_length):
            raise InputError(
                f"question {question.id} has {len(row.input_ids)} tokens, more than the {limit} of the model's "
                "context: lower --data.num_frames or --data.pixels.max_pixels"
            )
        return row, prompt

    def _build(
        self, rows: list[Row], scene_of: list[int], scenes: list[LoadedScene]
    ) -> tuple[Sequences | None, list[Prompt]]:
        return self.builder.training(
            rows, scene_of, scenes, max_tokens=self.tokens_per_sequence, packs_scenes=self.pack_scenes
        ), []


class QuestionCollate(Collate):
    """Ask the questions, those of a scene behind the prefix that they share.

    Args:
        questions_per_batch: Questions that are answered at once.
        parts: See `Collate`.
    """

    def __init__(self, *parts: Any, questions_per_batch: int = 8, **named_parts: Any) -> None:
        super().__init__(*parts, **named_parts)
        self.questions_per_batch = questions_per_batch

    def _num_answers(self, scene: LoadedScene) -> int:
        return len(scene.questions) if scene.is_supervised else 0  # later turns are not asked

    def _texts(self, scene: LoadedScene, question: Question) -> list[str]:
        return self.chat_format.chat(question, media_of(scene))

    def _build(
        self, rows: list[Row], scene_of: list[int], scenes: list[LoadedScene]
    ) -> tuple[Sequences | None, list[Prompt]]:
        prompts = [row.input_ids.tolist() for row in rows]
        return None, self.builder.prompts(prompts, [[i] for i in scene_of], scenes, self.questions_per_batch)


class SceneCollate:
    """Scenes alone, for a model without questions: frames, cameras and depth."""

    def __call__(self, loaded: Sequence[LoadedScene]) -> Batch:
        failed = [
            _failure(scene, question, scene.error) for scene in loaded if scene.error for question in scene.questions
        ]
        readable = [scene for scene in loaded if scene.error is None]
        scenes = [
            replace(scene, questions=(), grid_thw=(len(scene.frame_indices or ()) // TEMPORAL_PATCH_SIZE, 0, 0))
            for scene in readable
        ]
        counts = [_count_answers(scene) for scene in readable]
        failed_answers = sum(map(_count_answers, loaded)) - sum(counts)
        return Batch(scenes, failed=failed, num_answers=counts, failed_answers=failed_answers, step=step_of(loaded))


def step_of(loaded: Sequence[LoadedScene]) -> OptimizerStep | None:
    """Return the optimizer step that the scenes of a batch are read for."""
    return loaded[0].step if loaded else None


class KeepInStep:
    """Collate training batches, so that each process takes each step although scenes can't be read.

    A batch of which nothing can be used shows another scene, which nothing is learned from.

    Args:
        collate: Makes a batch of loaded scenes.
        dataset: Scenes by `TrainingItem`.
        num_spares: Other scenes that are tried.
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
    """The record of a question, without its prediction and score; `unmeasured` is why objectives have no error."""
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
    """Count the answers about a scene that are learned from."""
    return int(num_answers(scene.questions).sum()) if scene.is_supervised else 0


def _failure(scene: LoadedScene, question: Question, error: str | None) -> Record:
    return {**record(scene, question, ""), "error": error, "prediction": ""}
