"""Batches: prompts and labels as the official training code writes them, padding, cameras, failures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from datamodules.chat_format import ChatFormat
from datamodules.collate import SceneCollate
from datamodules.scenes import Question
from tests.datamodules.batches import labels_of, question_batch, sequences_of, training_batch
from tests.zoo.asking import prompts_of
from zoo.backbones.qwen25_vl import tiny_preprocessor, tiny_processor
from zoo.backbones.qwen_vl import QwenVLPreprocessor
from zoo.geometry.base import SceneGeometry
from zoo.sequences.batch import Batch
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.loaded_scene import LoadedScene
from zoo.sequences.packing import IGNORED

TRAINING = Path(__file__).parents[1] / "golden/preprocess_train"
PROMPTS = Path(__file__).parents[1] / "golden/preprocess/prompts.json"


def scene(name: str, *questions: Question, size: tuple[int, int] = (56, 84), frames: int = 4) -> LoadedScene:
    pixels = torch.randint(0, 255, (frames, 3, *size), dtype=torch.uint8)
    geometry = SceneGeometry(
        world_to_camera=torch.eye(4).repeat(frames, 1, 1), K_normalized=torch.eye(3).repeat(frames, 1, 1)
    )
    return LoadedScene(
        name, questions, pixels, frame_indices=tuple(range(frames)), seconds_per_grid=1.0, geometry=geometry
    )


A = Question("a", "object_counting", "How many chair(s) are in this room?", "4")
B = Question("b", "object_rel_direction_easy", "Is it left?", "B", ("A. left", "B. right"))


def test_the_tiny_template_renders_what_the_real_one_does() -> None:
    wording = ChatFormat(tiny_preprocessor())
    for row in json.loads(PROMPTS.read_text()):
        question = Question("0", row["question_type"], row["question"], options=tuple(row.get("options") or ()))
        assert wording.prompt(question) == row["spatial_mllm_chat_text"]
        ids = tiny_processor().tokenizer(row["spatial_mllm_chat_text"])["input_ids"]
        assert tiny_processor().tokenizer.decode(ids) == row["spatial_mllm_chat_text"]


@pytest.mark.parametrize("build", [training_batch, question_batch])
def test_a_question_with_a_mark_of_the_chat_is_refused_and_spoils_no_other(build: Callable[..., Batch]) -> None:
    """Its <|video_pad|> would count as a visual token, and fail every question of its scene."""
    marked = Question("c", "object_counting", "How many <|video_pad|>?", "4")
    found = build(tiny_preprocessor(), scene("a", A, marked, B), scene("b", marked))
    alone = build(tiny_preprocessor(), scene("a", A, B))
    assert [record["id"] for record in found.records] == ["a", "b"] and len(found.scenes) == 1
    assert prompts_of(found) == prompts_of(alone)
    if alone.sequences is not None:
        assert torch.equal(sequences_of(found).input_ids, alone.sequences.input_ids)
    said = "question c holds <|video_pad|>, a special token of the chat: take it out"
    assert [(record["scene"], record["error"]) for record in found.failed] == [("a", said), ("b", said)]
    fine = Question("d", "object_counting", "How many <b>chairs</b> | tables?", "4")
    assert not build(tiny_preprocessor(), scene("a", fine)).failed


def test_real_and_tiny_templates_agree_on_any_chat(realdata: Path) -> None:
    real = AutoProcessor.from_pretrained(realdata / "qwen2.5-vl")
    for question in (A, B):
        for with_answers in (False, True):
            texts = [
                ChatFormat(preprocessor).chat(question, with_answers=with_answers)
                for preprocessor in (QwenVLPreprocessor(real), tiny_preprocessor())
            ]
            assert texts[0] == texts[1] and len(texts[0]) == 1 + with_answers
    own_system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    for prompt in (False, True):
        kwargs = {"tokenize": False, "add_generation_prompt": prompt}
        expected = real.apply_chat_template(own_system, **kwargs)
        assert expected == tiny_processor().apply_chat_template(own_system, **kwargs)


def test_training_pads_right_and_labels_the_answer_only() -> None:
    batch = training_batch(tiny_preprocessor(), scene("one", A, B), scene("two", A))
    sequences, labels, decode = sequences_of(batch), labels_of(batch), tiny_processor().tokenizer.decode
    assert sequences.scene_index == [[0], [0], [1]]
    assert [decode(row[row != IGNORED]) for row in labels] == ["4<|im_end|>\n", "B<|im_end|>\n", "4<|im_end|>\n"]
    assert sequences.padding_mask is None and len(set(sequences.lengths)) > 1
    ends = [decode(ids[:length]) for ids, length in zip(sequences.input_ids, sequences.lengths, strict=True)]
    assert all(end.endswith("<|im_end|>\n") for end in ends)
    assert torch.equal(labels[labels != IGNORED], sequences.input_ids[labels != IGNORED])


def test_questions_of_a_scene_share_its_prefix_and_a_scene_is_seen_once() -> None:
    batch = question_batch(tiny_preprocessor(), scene("one", A, B))
    assert batch.sequences is None
    (shown,), (prompt,) = batch.scenes, batch.prompts
    assert shown.grid_thw == (2, 4, 6) and len(shown.pixel_values) == 48
    is_video = prompt.prefix.input_ids == tiny_processor().video_token_id
    assert is_video.sum() == 12 and prompt.rows == (0, 1)
    texts = [tiny_processor().tokenizer.decode(ids).replace("<|video_pad|>" * 11, "") for ids in prompts_of(batch)]
    assert texts == [ChatFormat(tiny_preprocessor()).prompt(question) for question in (A, B)]
    assert [r["id"] for r in batch.records] == ["a", "b"] and batch.records[0]["frames"] == [0, 1, 2, 3]


def test_failed_scenes_become_records() -> None:
    failed = LoadedScene("bad", (A, B), error="bad.mp4: truncated")
    for scenes in ([failed], [failed, scene("good", A)]):
        batch = question_batch(tiny_preprocessor(), *scenes)
        assert [(r["id"], r["prediction"], r["error"]) for r in batch.failed] == [
            ("a", "", "bad.mp4: truncated"),
            ("b", "", "bad.mp4: truncated"),
        ]
        assert len(batch.records) == len(batch.prompts) == len(batch.scenes) == len(scenes) - 1


def test_faults_of_a_scene_in_a_worker_travel_as_its_records() -> None:
    """A scene whose patches can't be cut, and a question beyond the context: a worker that raised would end the run."""
    odd, good = scene("odd", A, frames=3, size=(50, 70)), scene("good", A)
    too_long = Question("long", "object_counting", "chair " * 200, "4")
    long, mixed = scene("long", too_long), scene("mixed", A, too_long, B)
    batch = training_batch(tiny_preprocessor(), odd, long, good, context_length=200)
    assert [each["scene"] for each in batch.records] == ["good"] and len(batch.scenes) == 1
    left = training_batch(tiny_preprocessor(), mixed, context_length=200)
    assert [each["id"] for each in left.failed] == ["long"] and [each["id"] for each in left.records] == ["a", "b"]
    assert left.num_answers == (2,) and sequences_of(left).scene_index == [[0], [0]]
    reasons = {each["scene"]: each["error"] for each in batch.failed}
    assert set(reasons) == {"odd", "long"} and reasons["odd"]
    assert re.fullmatch(
        "question long has [0-9]+ tokens, more than the 200 of the model's context: lower .*", reasons["long"]
    )
    assert not question_batch(tiny_preprocessor(), long, context_length=200).failed  # an answer's length is known later


def test_geometry_and_frames_come_scene_by_scene_and_only_what_is_wanted() -> None:
    scenes = [scene("long", A, frames=6), scene("short", A, frames=2)]
    shown = training_batch(tiny_preprocessor(), *scenes).scenes
    assert [len(s.geometry.world_to_camera) for s in shown] == [6, 2] and shown[0].frames is None
    assert [len(s.cameras.world_to_camera) for s in shown] == [3, 1]  # merged, one per temporal patch
    shown = training_batch(tiny_preprocessor(), *scenes, requires_frames=True).scenes
    assert [tuple(s.frames.shape) for s in shown] == [(6, 3, 56, 84), (2, 3, 56, 84)]


def test_scenes_without_questions_are_not_tokenized() -> None:
    """For a task that reads frames, cameras and depth alone."""
    failed = LoadedScene("bad", (A,), error="bad.mp4: truncated")
    batch = SceneCollate()([scene("a", A), failed, scene("b", frames=2)])
    assert [len(each.frames) for each in batch.scenes] == [4, 2]
    assert [each.geometry.has_cameras for each in batch.scenes] == [True, True]
    assert batch.sequences is None and not batch.prompts and not batch.records
    assert [each["error"] for each in batch.failed] == ["bad.mp4: truncated"]


@pytest.mark.parametrize(
    ("appended", "view"), [(ExtraTokens.NONE, 6), (ExtraTokens.LAST_AND_END, 7), (ExtraTokens.ALL, 12)]
)
def test_what_is_appended_has_placeholders(appended: ExtraTokens, view: int) -> None:
    batch = training_batch(tiny_preprocessor(), scene("a", A, frames=4), extra_tokens=appended)
    is_video = sequences_of(batch).input_ids == tiny_processor().video_token_id
    assert is_video.sum() == sequences_of(batch).visual_counts[0] == 2 * view + appended.at_end
