"""Batches: prompts and labels as the official training code writes them, padding, cameras, failures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from datamodules.collate import IGNORED, Collate, LoadedScene
from datamodules.scenes import Question, Scene
from zoo.backbones.qwen25_vl.tiny import tiny_preprocessor, tiny_processor
from zoo.backbones.qwen_preprocessor import QwenVLPreprocessor
from zoo.geometry.base import SceneGeometry
from zoo.sequences.visual_grid import ExtraTokens

TRAINING = Path(__file__).parents[1] / "golden/preprocess_train"
PROMPTS = Path(__file__).parents[1] / "golden/preprocess/prompts.json"


def scene(name: str, *questions: Question, size: tuple[int, int] = (56, 84), frames: int = 4) -> LoadedScene:
    pixels = torch.randint(0, 255, (frames, 3, *size), dtype=torch.uint8)
    geometry = SceneGeometry(
        world_to_camera=torch.eye(4).repeat(frames, 1, 1), K_normalized=torch.eye(3).repeat(frames, 1, 1)
    )
    described = Scene(name, Path(name), questions)
    return LoadedScene(described, questions, pixels, tuple(range(frames)), 1.0, geometry)


A = Question("a", "object_counting", "How many chair(s) are in this room?", "4")
B = Question("b", "object_rel_direction_easy", "Is it left?", "B", ("A. left", "B. right"))


def test_the_tiny_template_renders_what_the_real_one_does() -> None:
    build = Collate(tiny_preprocessor(), training=False)
    for row in json.loads(PROMPTS.read_text()):
        question = Question("0", row["question_type"], row["question"], options=tuple(row.get("options") or ()))
        assert build.prompt(question) == row["spatial_mllm_chat_text"]
        ids = tiny_processor().tokenizer(row["spatial_mllm_chat_text"])["input_ids"]
        assert tiny_processor().tokenizer.decode(ids) == row["spatial_mllm_chat_text"]


@pytest.mark.parametrize("training", [False, True])
def test_a_question_with_a_mark_of_the_chat_is_refused_and_spoils_no_other(training: bool) -> None:
    """Its <|video_pad|> would count as a visual token, and fail every question of its scene."""
    build = Collate(tiny_preprocessor(), training)
    marked = Question("c", "object_counting", "How many <|video_pad|>?", "4")
    found, alone = build([scene("a", A, marked, B), scene("b", marked)]), build([scene("a", A, B)])
    assert [record["id"] for record in found["records"]] == ["a", "b"]
    assert torch.equal(found["input_ids"], alone["input_ids"]) and len(found["scenes"]) == 1
    said = "question c holds <|video_pad|>, a special token of the chat: take it out"
    assert [(record["scene"], record["error"]) for record in found["failed"]] == [("a", said), ("b", said)]
    fine = Question("d", "object_counting", "How many <b>chairs</b> | tables?", "4")
    assert not build([scene("a", fine)])["failed"]


@pytest.mark.parametrize("training", [False, True])
def test_real_and_tiny_templates_agree_on_any_chat(training: bool, realdata: Path) -> None:
    real = AutoProcessor.from_pretrained(realdata / "qwen2.5-vl")
    for question in (A, B):
        assert Collate(QwenVLPreprocessor(real), training).prompt(question) == Collate(
            tiny_preprocessor(), training
        ).prompt(question)
    own_system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    kwargs = {"tokenize": False, "add_generation_prompt": not training}
    assert real.apply_chat_template(own_system, **kwargs) == tiny_processor().apply_chat_template(own_system, **kwargs)


def test_training_pads_right_and_labels_the_answer_only() -> None:
    batch = Collate(tiny_preprocessor(), training=True)([scene("one", A, B), scene("two", A)])
    decode = tiny_processor().tokenizer.decode
    assert batch["scene_index"].tolist() == [0, 0, 1]
    answers = [decode(row[row != IGNORED]) for row in batch["labels"]]
    assert answers == ["4<|im_end|>\n", "B<|im_end|>\n", "4<|im_end|>\n"]
    assert (batch["attention_mask"].diff() <= 0).all() and not batch["attention_mask"].all()
    supervised = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])


def test_questions_pad_left_and_a_scene_is_seen_once() -> None:
    batch = Collate(tiny_preprocessor(), training=False)([scene("one", A, B)])
    assert (batch["attention_mask"].diff() >= 0).all() and not batch["attention_mask"].all()
    assert (batch["labels"] == IGNORED).all()
    assert [s.grid_thw.tolist() for s in batch["scenes"]] == [[2, 4, 6]] and len(batch["scenes"][0].pixel_values) == 48
    placeholders = (batch["input_ids"] == tiny_processor().video_token_id).sum(1)
    assert placeholders.tolist() == [12, 12]
    assert [r["id"] for r in batch["records"]] == ["a", "b"] and batch["records"][0]["frames"] == [0, 1, 2, 3]


def test_failed_scenes_become_records() -> None:
    failed = LoadedScene(Scene("bad", Path("bad.mp4"), (A, B)), (A, B), error="bad.mp4: truncated")
    for scenes in ([failed], [failed, scene("good", A)]):
        batch = Collate(tiny_preprocessor(), training=False)(scenes)
        assert [(r["id"], r["prediction"], r["error"]) for r in batch["failed"]] == [
            ("a", "", "bad.mp4: truncated"),
            ("b", "", "bad.mp4: truncated"),
        ]
        assert len(batch["records"]) == len(batch["input_ids"]) == len(scenes) - 1


def test_geometry_and_frames_come_scene_by_scene_and_only_what_is_wanted() -> None:
    scenes = [scene("long", A, frames=6), scene("short", A, frames=2)]
    batch = Collate(tiny_preprocessor(), training=True)(scenes)
    assert [len(s.geometry.world_to_camera) for s in batch["scenes"]] == [6, 2] and batch["scenes"][0].frames is None
    batch = Collate(tiny_preprocessor(), training=True, keep_frames=True)(scenes)
    assert [tuple(s.frames.shape) for s in batch["scenes"]] == [(6, 3, 56, 84), (2, 3, 56, 84)]


@pytest.mark.parametrize(("appended", "view"), [(ExtraTokens.NONE, 6), (ExtraTokens.ONE, 7), (ExtraTokens.ALL, 12)])
def test_what_a_fusion_appends_has_placeholders(appended: ExtraTokens, view: int) -> None:
    batch = Collate(tiny_preprocessor(), training=True, extra_tokens=appended)([scene("a", A, frames=4)])
    assert (batch["input_ids"] == tiny_processor().video_token_id).sum() == 2 * view
