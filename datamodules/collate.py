"""Scenes and their questions to one batch: prompts, token ids, pixels, cameras.

A batch is a dict of
    input_ids, attention_mask, labels (N, L): a question a row; labels are -100 but on the answer;
    scene_index (N,): the scene that each row asks about;
    pixel_values_videos, video_grid_thw (S, 3), seconds_per_grid (S,), cameras: once a scene;
    records: a prediction record a row, without the prediction yet;
    failed: complete records of the questions of scenes that could not be read;
    questions_per_batch: how many questions are answered at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from transformers import Qwen2_5_VLProcessor

from datamodules.prompts import user_text
from datamodules.scenes import Question, Scene
from zoo.cameras import Cameras

IGNORED = -100  # torch's cross-entropy skips this label
# sizes, colours and frame choice are settled before: the processor only normalises and cuts patches
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
        cameras: one a grid step, (1, T / temporal_patch_size, ...); None if the scene has none.
    """

    scene: Scene
    questions: tuple[Question, ...]
    frames: UInt8[Tensor, "T 3 H W"] | None = None
    frame_indices: tuple[int, ...] = ()
    seconds_per_grid: float = 1.0
    cameras: Cameras | None = None
    error: str | None = None


@dataclass
class Collate:
    """Turns loaded scenes into a batch.

    Args:
        processor: the model's.
        training: append the answers, pad on the right, and label; else leave room for answers (pad on the left).
        questions_per_batch: carried along for the model.
    """

    processor: Qwen2_5_VLProcessor
    training: bool
    questions_per_batch: int = 8

    def __call__(self, scenes: list[LoadedScene]) -> dict[str, Any]:
        failed = [record(s, q, prompt="") for s in scenes if s.error is not None for q in s.questions]
        scenes = [scene for scene in scenes if scene.error is None]
        batch: dict[str, Any] = {
            "failed": [{**each, "prediction": ""} for each in failed],
            "questions_per_batch": self.questions_per_batch,
        }
        if not scenes:
            return {**batch, "records": [], "input_ids": torch.empty(0, 0, dtype=torch.long)}
        videos = [scene.frames for scene in scenes]
        batch.update(self.processor.video_processor(videos=videos, **PATCHES_ONLY))
        merged = self.processor.video_processor.merge_size**2
        tokens = (batch["video_grid_thw"].prod(1) // merged).tolist()

        rows = [(s, scene, question) for s, scene in enumerate(scenes) for question in scene.questions]
        prompts = [self.prompt(question) for _, _, question in rows]
        sequences = [self._ids(p, q, tokens[s]) for p, (s, _, q) in zip(prompts, rows, strict=True)]
        return {
            **batch,
            **self._pad(sequences),
            "scene_index": torch.tensor([s for s, _, _ in rows]),
            "seconds_per_grid": torch.tensor([scene.seconds_per_grid for scene in scenes]),
            "cameras": stack_cameras([scene.cameras for scene in scenes]),
            "records": [
                record(scene, question, prompt) for prompt, (_, scene, question) in zip(prompts, rows, strict=True)
            ],
        }

    def prompt(self, question: Question) -> str:
        """The text of the chat up to where the answer starts; the video comes before the question."""
        content = [{"type": "video"}, {"type": "text", "text": user_text(question)}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def _ids(self, prompt: str, question: Question, tokens: int) -> tuple[Tensor, Tensor]:
        """(input ids, labels): the placeholder repeated once a visual token, the answer labelled."""
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


def stack_cameras(each: list[Cameras | None]) -> Cameras | None:
    """The cameras of several scenes as one batch, short ones filled up with identities that no token points to.

    A scene without cameras among others is all identities: it may only come where no encoding reads them.
    """
    present = [cameras for cameras in each if cameras is not None]
    if not present:
        return None
    steps = max(cameras.world_to_camera.shape[1] for cameras in present)
    dtype = present[0].world_to_camera.dtype
    world_to_camera = torch.eye(4, dtype=dtype).repeat(len(each), steps, 1, 1)
    intrinsics = torch.eye(3, dtype=dtype).repeat(len(each), steps, 1, 1)
    for row, cameras in enumerate(each):
        if cameras is not None:
            count = cameras.world_to_camera.shape[1]
            world_to_camera[row, :count] = cameras.world_to_camera[0]
            intrinsics[row, :count] = cameras.K_normalised[0]
    return Cameras(world_to_camera, intrinsics)


def pair_cameras(
    world_to_camera: Float[Tensor, "T 4 4"], K_normalised: Float[Tensor, "T 3 3"], merged_frames: int
) -> Cameras:
    """A camera a grid step from a camera a frame: that of the first of the frames merged into one token."""
    return Cameras(world_to_camera[None, ::merged_frames], K_normalised[None, ::merged_frames])
