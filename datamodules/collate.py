"""Turns loaded scenes into a batch, in data workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from datamodules.loaded_scene import LoadedScene, Wording, media_of
from datamodules.scenes import Question
from zoo.errors import SCENE_FAULTS, InputError, describe_fault
from zoo.geometry.cached import STILLS_OF_ANOTHER_GRID
from zoo.geometry.reader import GeometryReader
from zoo.model_spec import DataRequirements
from zoo.sequences.batch import Batch, Prompt, Record, Sequences
from zoo.sequences.builder import SequenceBuilder
from zoo.sequences.loaded_scene import SceneInputs
from zoo.sequences.packing import IGNORED, Row


class Collate(ABC):
    """Turn loaded scenes with their questions into a batch.

    A scene or question that can't be used becomes a record of `Batch.failed`: its fault travels as a value.

    Args:
        wording: Of the questions.
        builder: Of the model's sequences.
        requirements: The model's.
        geometry_reader: Reads the model's cached geometry; None without a cache.
        requires_targets: Whether a scene whose training targets could not be read is an error.
    """

    def __init__(
        self,
        wording: Wording,
        builder: SequenceBuilder,
        requirements: DataRequirements | None = None,
        geometry_reader: GeometryReader | None = None,
        *,
        requires_targets: bool = False,
    ) -> None:
        self.wording, self.builder, self.geometry_reader = wording, builder, geometry_reader
        self.requires_targets = requires_targets
        self.requirements = DataRequirements() if requirements is None else requirements

    def __call__(self, loaded: Sequence[LoadedScene]) -> Batch:
        scenes: list[SceneInputs] = []
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
                refusals = [self.wording.refusal(question) for question in scene.questions]
                asked = [q for q, error in zip(scene.questions, refusals, strict=True) if not error]
                failed += [_failure(scene, q, e) for q, e in zip(scene.questions, refusals, strict=True) if e]
                # 2. The scene.
                inputs = self.scene_inputs(scene)
                if self.requirements.cameras and inputs.cameras is None:
                    raise InputError("a scene without cameras, which this model requires")
            except SCENE_FAULTS as error:
                reason = describe_fault(error)
                failed += [_failure(scene, question, reason) for question in asked]
                continue
            # 3. One row per question, without those that are too long.
            usable = []
            for question in asked:
                try:
                    row, prompt = self._row(scene, question, inputs)
                except SCENE_FAULTS as error:
                    failed.append(_failure(scene, question, describe_fault(error)))
                    continue
                usable.append(question)
                rows.append(row)
                records.append(record(scene, question, prompt))
                scene_of.append(len(scenes))
            if scene.questions and not usable:
                continue
            scenes.append(inputs)
            counts.append(self._num_answers(replace(scene, questions=tuple(usable))))
        # 4. Sequences.
        sequences, prompts = self._build(rows, scene_of, scenes) if rows else (None, [])
        return Batch(scenes, self.builder.vision(scenes), sequences, prompts, records, failed, counts)

    def scene_inputs(self, loaded: LoadedScene) -> SceneInputs:
        """Make the model's inputs of a loaded scene."""
        if self.requires_targets and loaded.target_error is not None:
            raise InputError(loaded.target_error)
        assert loaded.frames is not None
        pixel_values, grid_thw = self.wording.preprocessor.cut_patches(loaded.frames)
        other, needs = loaded.geometry_override, self.requirements
        geometry = None if loaded.geometry is None else loaded.geometry.without_invalid_cameras()
        cameras, cached = self.builder.merge_cameras(geometry), None
        frames = loaded.seen_by_geometry
        if self.geometry_reader is not None:
            if loaded.geometry_frames is not None and self.geometry_reader.entries.resampled_from is not None:
                raise InputError(STILLS_OF_ANOTHER_GRID)
            cached = self.geometry_reader.read(
                frames, geometry, loaded.kind, has_cameras=cameras is not None, window=loaded.tower_window
            )
        return SceneInputs(
            pixel_values,
            grid_thw,
            kind=loaded.kind,
            frames=frames if needs.frames and cached is None else None,
            tower_window=loaded.tower_window,
            geometry=geometry,
            cached_geometry=cached,
            cameras=cameras,
            frame_indices=loaded.frame_indices,
            seconds_per_grid=None if needs.seconds == "nominal" else loaded.seconds_per_grid,
            geometry_override=self.scene_inputs(other) if isinstance(other, LoadedScene) else other,
            question_types=loaded.question_types,
            has_true_cameras=loaded.has_true_cameras,
            draw=loaded.draw,
        )

    def _row(self, scene: LoadedScene, question: Question, inputs: SceneInputs) -> tuple[Row, str]:
        """The tokens of a question, and its prompt as text."""
        texts = self._texts(scene, question)
        tokens = self.wording.preprocessor.tokenize(
            texts, inputs.media_grids, self.builder.rules.extra_tokens, scene.frame_times
        )
        labels = tokens.labels if scene.is_supervised else torch.full_like(tokens.labels, IGNORED)
        return Row.of(tokens.input_ids, labels), texts[0]

    def _num_answers(self, scene: LoadedScene) -> int:
        """The answers that are learned from."""
        return scene.num_answers

    @abstractmethod
    def _texts(self, scene: LoadedScene, question: Question) -> list[str]:
        """The chat about a question."""

    @abstractmethod
    def _build(
        self, rows: list[Row], scene_of: list[int], scenes: list[SceneInputs]
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
            self.builder.rules.check_scene_packing()

    def _texts(self, scene: LoadedScene, question: Question) -> list[str]:
        return self.wording.chat(question, media_of(scene), with_answers=True)

    def _row(self, scene: LoadedScene, question: Question, inputs: SceneInputs) -> tuple[Row, str]:
        row, prompt = super()._row(scene, question, inputs)
        if len(row.input_ids) > (limit := self.builder.rules.context_length):
            raise InputError(
                f"question {question.id} has {len(row.input_ids)} tokens, more than the {limit} of the model's "
                "context: lower --data.num_frames or --data.pixels.max_pixels"
            )
        return row, prompt

    def _build(
        self, rows: list[Row], scene_of: list[int], scenes: list[SceneInputs]
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
        return self.wording.chat(question, media_of(scene))

    def _build(
        self, rows: list[Row], scene_of: list[int], scenes: list[SceneInputs]
    ) -> tuple[Sequences | None, list[Prompt]]:
        prompts = [row.input_ids.tolist() for row in rows]
        return None, self.builder.prompts(prompts, [[i] for i in scene_of], scenes, self.questions_per_batch)


class SceneCollate:
    """Scenes alone, for a task without questions: frames, cameras and depth."""

    def __call__(self, loaded: Sequence[LoadedScene]) -> Batch:
        failed = [
            _failure(scene, question, scene.error) for scene in loaded if scene.error for question in scene.questions
        ]
        readable = [scene for scene in loaded if scene.error is None]
        scenes = [
            SceneInputs(
                torch.empty(0, 0),
                (len(scene.frame_indices) // 2, 0, 0),
                frames=scene.frames,
                geometry=scene.geometry,
                draw=scene.draw,
            )
            for scene in readable
        ]
        return Batch(scenes, failed=failed, num_answers=[scene.num_answers for scene in readable])


def record(scene: LoadedScene, question: Question, prompt: str) -> Record:
    """The record of a question, without its prediction and score; `unmeasured` is why objectives have no error."""
    return {
        "id": question.id,
        "scene": scene.scene.name,
        "question_type": question.question_type,
        "question": question.question,
        "prompt": prompt,
        "ground_truth": question.ground_truth,
        "frames": list(scene.frame_indices),
        "error": scene.error,
        **({"unmeasured": scene.target_error} if scene.target_error else {}),
    }


def _failure(scene: LoadedScene, question: Question, error: str | None) -> Record:
    return {**record(scene, question, ""), "error": error, "prediction": ""}
