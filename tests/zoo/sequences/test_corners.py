"""Batches at the edges: text alone, questions that fail, cameras that do not fit, pickled sequences."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from datamodules.scenes import Question, RawQuestion
from tests.zoo import asking
from tests.zoo.asking import QUESTIONS, build, scene
from tests.zoo.test_vlm import cameras, sequences
from zoo import InputError, PRoPE, SpatialVLM, TinyQwen25VL, TinyVGGT
from zoo.media import batch_of_media
from zoo.sequences.time_index import PoseDistanceIndex

SMALL = {"layers": 2, "hidden_size": 64, "heads": 2, "key_value_heads": 1, "vision_hidden_size": 32}
VGGT = {"geometry": lambda: TinyVGGT(embed_dim=32, depth=2)}
MODELS: dict[str, dict[str, Any]] = {
    "auto": {"camera_encoding": PRoPE, "camera_source": "auto", **VGGT},
    "predicted": {"camera_encoding": PRoPE, "camera_source": "predicted", **VGGT},
    "pose index": {"time_index": PoseDistanceIndex, "camera_source": "predicted", **VGGT},
}


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_text_alone_needs_no_cameras(name: str) -> None:
    """It is the stock model there, bit for bit."""
    parts = {key: part() if isinstance(part, type) else part for key, part in MODELS[name].items()}
    ours, plain = (SpatialVLM(TinyQwen25VL(**SMALL, seed=0), **each).eval() for each in (parts, {}))
    ids = torch.tensor([[50, 60, 70, 80]])
    mask = torch.ones_like(ids)
    assert torch.equal(ours.logits(ids, mask), plain.logits(ids, mask))
    assert ours.generate_ids(ids, mask, max_new_tokens=3) == plain.generate_ids(ids, mask, max_new_tokens=3)


def test_answers_refuse_cameras_that_they_would_ignore() -> None:
    model, given = SpatialVLM(TinyQwen25VL(**SMALL), camera_encoding=PRoPE()).eval(), sequences()
    assert len(model.generate_ids(**given, cameras=cameras(1), max_new_tokens=2)) == 2
    with pytest.raises(ValueError, match="cameras per sample"):
        model.generate_ids(**given, cameras=cameras(1).span(0, 1), max_new_tokens=2)
    index = torch.full(given["input_ids"].shape, -1)
    with pytest.raises(InputError, match="not an index"):
        model.generate_ids(**given, cameras=cameras(1).with_index(index), max_new_tokens=2)


def test_views_that_the_index_of_cameras_leaves_out_have_none_in_the_geometry() -> None:
    model, given = SpatialVLM(TinyQwen25VL(**SMALL), camera_encoding=PRoPE()), sequences()
    media: Any = {name: given.pop(name) for name in ("pixel_values_videos", "video_grid_thw")}
    index = batch_of_media(model.sequence_builder, **given, media=media).sequences.camera_index  # type: ignore[union-attr]
    media["cameras"] = cameras(1).with_index(index.where(index != 1, -1))
    for shown in batch_of_media(model.sequence_builder, **given, media=media).scenes:
        assert shown.cameras is not None and shown.geometry is not None and not shown.cameras.has_camera[1]
        assert torch.equal(shown.geometry.cameras()[2], shown.cameras.has_camera.repeat_interleave(2))


def test_a_refused_question_and_one_that_fails_are_recorded_once_and_spoil_no_other() -> None:
    task = build("plain")
    refused = Question("0", "", "How <|im_end|> many?")
    broken = RawQuestion("1", "", "<video> and <video>")
    made = asking.batch(task, scene("a", (refused, broken, QUESTIONS[2])))
    assert [record["id"] for record in made.failed] == ["0", "1"]
    assert [record["id"] for record in made.records] == [QUESTIONS[2].id]


@pytest.mark.parametrize("name", ["PRoPE, ChannelRange", "PoseDistanceIndex"])
@pytest.mark.parametrize("training", [False, True])
def test_a_scene_without_a_valid_camera_is_a_record(name: str, training: bool) -> None:
    task, bad = build(name), scene("a", QUESTIONS[:1])
    assert bad.geometry is not None
    bad.geometry.has_camera = torch.zeros(6, dtype=torch.bool)
    sound = replace(scene("b", QUESTIONS[1:2]))
    made = asking.batch(task, bad, sound, training=training)
    assert [record["error"] for record in made.failed] == [
        "a: no cameras, and this model needs them: give the scene a cameras.json"
    ]
    assert [record["scene"] for record in made.records] == ["b"]


def test_pickled_sequences_hold_their_tensors_by_value() -> None:
    """A worker shares each tensor by a file descriptor: those of many prompts would exhaust them."""
    task = build("prope.yaml")
    made = asking.batch(task, scene("a"), training=True, pack_scenes=True)
    before, after = made.sequences, pickle.loads(pickle.dumps(made)).sequences
    assert before is not None and torch.equal(before.input_ids, after.input_ids)
    assert before.scene_index == after.scene_index and torch.equal(before.packing.places, after.packing.places)
    assert isinstance(before.__reduce__()[1][0], bytes)
