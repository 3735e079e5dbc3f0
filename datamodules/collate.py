"""Scenes and their questions to one batch.

A batch is a dict of
    input_ids, attention_mask, labels (N, L): one question per row; labels are -100 except on the answer;
    scene_index (N,): the scene of each row;
    scenes: one `SceneInputs` per scene;
    records: one prediction record per row, without the prediction yet;
    failed: complete records of the questions of scenes that could not be read, and of questions that can't be asked;
    questions_per_batch: how many questions are answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from datamodules.prompts import user_text
from datamodules.scenes import Question, Scene
from zoo.backbones.base import Preprocessor, TokenizedPrompt
from zoo.benchmarks import Benchmark
from zoo.fusions.base import ExtraTokens
from zoo.geometry.base import SceneGeometry
from zoo.scenes import SceneInputs
from zoo.shared_prefix import IGNORED


@dataclass
class LoadedScene:
    """A scene with its frames and geometry, or with the reason why they could not be read.

    Attributes:
        scene: the scene.
        questions: those to ask.
        frames: chosen and resized.
        frame_indices: their indices among the video's raw frames.
        seconds_per_grid: the clip's own seconds between two temporal patches.
        geometry: cameras and depth of the frames; None if the scene has none.
        error: why nothing was read.
    """

    scene: Scene
    questions: tuple[Question, ...]
    frames: UInt8[Tensor, "T 3 H W"] | None = None
    frame_indices: tuple[int, ...] = ()
    seconds_per_grid: float = 1.0
    geometry: SceneGeometry | None = None
    error: str | None = None


@dataclass
class Collate:
    """Turns loaded scenes into a batch.

    Args:
        preprocessor: the backbone's.
        training: append the answers, pad on the right, and label; else leave room for answers (pad on the left).
        questions_per_batch: passed on to the model.
        extra_tokens: tokens that follow the 2D tokens of each view, with placeholders of their own.
        keep_frames: pass the frames on, for a geometry encoder.
        timestamps: pass the clip's own seconds per temporal patch on, instead of the nominal ones.
        benchmark: whose wording the questions have; None is VSI-Bench's.
    """

    preprocessor: Preprocessor
    training: bool
    questions_per_batch: int = 8
    extra_tokens: ExtraTokens = ExtraTokens.NOTHING
    keep_frames: bool = False
    timestamps: bool = False
    benchmark: Benchmark | None = None

    def __call__(self, loaded: list[LoadedScene]) -> dict[str, Any]:
        # 1. Leave out what could not be read or can't be asked.
        failed = [record(scene, q, prompt="") for scene in loaded if scene.error for q in scene.questions]
        sound = []
        for scene in loaded:
            if scene.error is not None:
                continue
            refused = {q.id: reason for q in scene.questions if (reason := self._refusal(q))}
            failed += [{**record(scene, q, ""), "error": refused[q.id]} for q in scene.questions if q.id in refused]
            asked = tuple(q for q in scene.questions if q.id not in refused)
            if asked or not refused:
                sound.append(replace(scene, questions=asked))
        batch: dict[str, Any] = {
            "failed": [{**each, "prediction": ""} for each in failed],
            "questions_per_batch": self.questions_per_batch,
            "scenes": [self.scene_inputs(scene) for scene in sound],
        }
        if not sound:
            return {**batch, "records": [], "input_ids": torch.empty(0, 0, dtype=torch.long)}
        # 2. One row per question.
        rows = [(i, scene, question) for i, scene in enumerate(sound) for question in scene.questions]
        prompts = [self.prompt(question) for _, _, question in rows]
        grids = [scene.grid_thw.tolist() for scene in batch["scenes"]]
        sequences = [
            self.preprocessor.tokenize(
                prompt, grids[i], self.extra_tokens, question.ground_truth if self.training else None
            )
            for prompt, (i, _, question) in zip(prompts, rows, strict=True)
        ]
        return {
            **batch,
            **self._pad(sequences),
            "scene_index": torch.tensor([i for i, _, _ in rows]),
            "records": [
                record(scene, question, prompt) for prompt, (_, scene, question) in zip(prompts, rows, strict=True)
            ],
        }

    def scene_inputs(self, loaded: LoadedScene) -> SceneInputs:
        """A loaded scene as the model reads it."""
        assert loaded.frames is not None
        pixel_values, grid_thw = self.preprocessor.cut_patches(loaded.frames)
        return SceneInputs(
            pixel_values,
            grid_thw,
            frames=loaded.frames if self.keep_frames else None,
            geometry=loaded.geometry,
            frame_indices=loaded.frame_indices,
            seconds_per_grid=loaded.seconds_per_grid if self.timestamps else None,
        )

    def prompt(self, question: Question) -> str:
        """The text of the chat up to where the answer starts; the video precedes the question."""
        return self.preprocessor.prompt(user_text(question, self.benchmark))

    def _refusal(self, question: Question) -> str | None:
        """Why a question can't be asked, if it can't."""
        token = self.preprocessor.reserved_token(f"{user_text(question, self.benchmark)}\n{question.ground_truth}")
        return f"question {question.id} holds {token}, a special token of the chat: take it out" if token else None

    def _pad(self, sequences: list[TokenizedPrompt]) -> dict[str, Tensor]:
        fill = {"input_ids": self.preprocessor.pad_token_id, "labels": IGNORED, "attention_mask": 0}
        columns = {
            "input_ids": [ids for ids, _ in sequences],
            "labels": [labels for _, labels in sequences],
            "attention_mask": [torch.ones_like(ids) for ids, _ in sequences],
        }
        side = "right" if self.training else "left"
        return {
            name: torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=fill[name], padding_side=side)
            for name, column in columns.items()
        }


def record(scene: LoadedScene, question: Question, prompt: str) -> dict[str, Any]:
    """The record of a question, without its prediction and score."""
    return {
        "id": question.id,
        "scene": scene.scene.name,
        "question_type": question.question_type,
        "question": question.question,
        "prompt": prompt,
        "ground_truth": question.ground_truth,
        "frames": list(scene.frame_indices),
        "error": scene.error,
    }
