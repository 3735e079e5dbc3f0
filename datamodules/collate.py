"""Scenes and their questions to one batch: prompts, token ids, pixels, cameras.

A batch is a dict of
    input_ids, attention_mask, labels (N, L): a question a row; labels are -100 but on the answer;
    scene_index (N,): the scene that each row asks about;
    pixel_values_videos, video_grid_thw (S, 3), seconds_per_grid (S,): once a scene;
    frame_indices: which raw frames each scene shows;
    geometry: what came with each scene's data, a camera a frame; frames, if wanted: uint8 (T, 3, H, W) each;
    records: a prediction record a row, without the prediction yet;
    failed: complete records of the questions of scenes that could not be read, and of those that can't be asked;
    questions_per_batch: how many questions are answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from transformers import Qwen2_5_VLProcessor

from datamodules.prompts import user_text
from datamodules.scenes import Question, Scene
from zoo.benchmarks import Benchmark
from zoo.fusions import ExtraTokens
from zoo.geometry.base import SceneGeometry

IGNORED = -100  # torch's cross-entropy skips this label
# sizes, colors and frame choice are settled before: the processor only normalizes and cuts patches
PATCHES_ONLY = {
    "do_resize": False,
    "do_sample_frames": False,
    "cap_pixels_per_frame": False,
    "return_tensors": "pt",
}


@dataclass
class LoadedScene:
    """A scene with what was read of it; `error` says why nothing was.

    Attributes:
        frames: chosen and resized.
        frame_indices: which of the video's raw frames they are.
        seconds_per_grid: the clip's real seconds between two grid steps.
        geometry: cameras and depth of the frames; None if the scene has none.
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
        processor: the model's.
        training: append the answers, pad on the right, and label; else leave room for answers (pad on the left).
        questions_per_batch: carried along for the model.
        appended: what the model's fusion lets follow the 2D tokens of each view: placeholders of their own.
        keep_frames: pass the frames on, for a geometry encoder.
        benchmark: whose wording the questions have; None is VSI-Bench's.
    """

    processor: Qwen2_5_VLProcessor
    training: bool
    questions_per_batch: int = 8
    appended: ExtraTokens = ExtraTokens.NOTHING
    keep_frames: bool = False
    benchmark: Benchmark | None = None

    def __call__(self, scenes: list[LoadedScene]) -> dict[str, Any]:
        failed = [record(s, q, prompt="") for s in scenes if s.error is not None for q in s.questions]
        sound = [scene for scene in scenes if scene.error is None]
        scenes = []
        for scene in sound:
            refused = {q.id: said for q in scene.questions if (said := self._refused(q))}
            failed += [{**record(scene, q, ""), "error": refused[q.id]} for q in scene.questions if q.id in refused]
            asked = tuple(q for q in scene.questions if q.id not in refused)
            if asked or not refused:
                scenes.append(replace(scene, questions=asked))
        batch: dict[str, Any] = {
            "failed": [{**each, "prediction": ""} for each in failed],
            "questions_per_batch": self.questions_per_batch,
        }
        if not scenes:
            return {**batch, "records": [], "input_ids": torch.empty(0, 0, dtype=torch.long)}
        videos = [scene.frames for scene in scenes]
        batch.update(self.processor.video_processor(videos=videos, **PATCHES_ONLY))
        tokens = [self._placeholders(*grid) for grid in batch["video_grid_thw"].tolist()]

        rows = [(s, scene, question) for s, scene in enumerate(scenes) for question in scene.questions]
        prompts = [self.prompt(question) for _, _, question in rows]
        sequences = [self._ids(p, q, tokens[s]) for p, (s, _, q) in zip(prompts, rows, strict=True)]
        return {
            **batch,
            **self._pad(sequences),
            "scene_index": torch.tensor([s for s, _, _ in rows]),
            "seconds_per_grid": torch.tensor([scene.seconds_per_grid for scene in scenes]),
            "frame_indices": [scene.frame_indices for scene in scenes],
            "geometry": [scene.geometry for scene in scenes],
            **({"frames": videos} if self.keep_frames else {}),
            "records": [
                record(scene, question, prompt) for prompt, (_, scene, question) in zip(prompts, rows, strict=True)
            ],
        }

    @cached_property
    def _marks(self) -> list[str]:
        """The chat's own, such as <|im_end|>: the tokenizer makes their table anew each time that it is asked."""
        return [str(token) for token in self.processor.tokenizer.added_tokens_decoder.values() if token.special]

    def _refused(self, question: Question) -> str | None:
        """Why a question can't be asked, if it can't: the tokenizer would read marks in its text as the chat's own."""
        text = f"{user_text(question, self.benchmark)}\n{question.ground_truth}"
        held = [mark for mark in self._marks if mark in text]
        return f"question {question.id} holds {held[0]}, a mark of the chat: take it out" if held else None

    def prompt(self, question: Question) -> str:
        """The text of the chat up to where the answer starts; the video comes before the question."""
        content = [{"type": "video"}, {"type": "text", "text": user_text(question, self.benchmark)}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _placeholders(self, steps: int, height: int, width: int) -> int:
        view = height * width // self.processor.video_processor.merge_size**2
        return steps * (view + len(self.appended.positions(view)))

    def _ids(self, prompt: str, question: Question, tokens: int) -> tuple[Tensor, Tensor]:
        """(input ids, labels): the placeholder repeated once a visual token, the answer labeled."""
        tokenizer, pad = self.processor.tokenizer, self.processor.video_token_id
        ids = []
        for token in tokenizer(prompt)["input_ids"]:
            ids += [pad] * tokens if token == pad else [token]
        answer = tokenizer(f"{question.ground_truth}<|im_end|>\n")["input_ids"] if self.training else []
        return torch.tensor(ids + answer), torch.tensor([IGNORED] * len(ids) + answer)

    def _pad(self, sequences: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        fill = {"input_ids": self.processor.tokenizer.pad_token_id, "labels": IGNORED, "attention_mask": 0}
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
    """What is written of a question, but for the prediction and its score."""
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
