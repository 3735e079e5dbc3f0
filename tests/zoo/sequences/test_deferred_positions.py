"""A time index by poses: positions in the worker by the dataset's cameras, in the step by predicted ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cases import each_once
from tests.zoo.asking import QUESTIONS, VGGT, batch, build, replies, scene
from tests.zoo.sequences.test_builder import TEXT, builder, drawn_case
from zoo.cameras import Cameras
from zoo.encodings.testing import random_cameras
from zoo.geometry import SceneGeometry
from zoo.sequences.batch import Batch, Sequences
from zoo.sequences.layout import ExtraTokens
from zoo.sequences.position_ids import DeferredPositions, layout_position_ids, valid_index
from zoo.sequences.time_index import ConstantIndex, PathLengthIndex, PoseDistanceIndex, PoseTimeIndex
from zoo.tasks import VideoQATask

INDICES = ["PoseDistanceIndex", "PathLengthIndex"]
SCENES = scene("a", QUESTIONS[:3]), scene("b", QUESTIONS[:1], steps=2, seed=1)


def with_lost_frames() -> Any:
    """The first patch and one frame of the second have no camera."""
    shown = scene("a", QUESTIONS[:3], steps=4)
    assert shown.geometry is not None
    shown.geometry.has_camera = torch.tensor([False, False, False, True, True, True, True, True])
    return shown


def predicting(task: VideoQATask, geometries: Sequence[SceneGeometry | None]) -> VideoQATask:
    """A task whose encoder predicts these cameras."""
    assert task.model.geometry is not None
    task.model.geometry.forward = lambda *_, **__: list(geometries)  # type: ignore[method-assign]
    return task


def sequences(made: Batch) -> Sequences:
    assert made.sequences is not None
    return made.sequences


def positions(task: VideoQATask, made: Batch) -> Tensor:
    with torch.no_grad():
        return task.model.decoder_inputs(task.model.encode_scenes(made), sequences(made))["position_ids"]


@pytest.mark.parametrize(
    ("name", "packing", "shown"),
    each_once(
        INDICES, {"rows": {}, "packed": {"pack_scenes": True}}, {"all": SCENES, "some": (with_lost_frames(), SCENES[1])}
    ),
)
def test_positions_by_predicted_cameras_are_those_by_equal_cameras_of_the_dataset(
    name: str, packing: dict[str, bool], shown: Any
) -> None:
    """Of questions that share a sequence as well."""
    by_dataset = build(name)
    asked = batch(by_dataset, *shown, training=True, **packing)
    known = sequences(asked).position_ids
    assert known is not None and sequences(asked).deferred_positions is None and sequences(asked).group is not None
    task = predicting(build(name, camera_source="predicted", **VGGT), [each.geometry for each in shown])
    bare = batch(task, *(replace(each, geometry=None) for each in shown), training=True, **packing)
    assert sequences(bare).position_ids is None and sequences(bare).deferred_positions is not None
    assert torch.equal(positions(task, bare), positions(by_dataset, asked))
    # the control: the time of visual tokens alone follows the cameras
    others = [scene("c", steps=len(each.frame_indices) // 2, seed=5).geometry for each in shown]
    differs = positions(predicting(task, others), bare) != positions(by_dataset, asked)
    assert differs.any()


@pytest.mark.parametrize(
    ("index", "after", "in_spans"),
    each_once(
        {"PoseDistanceIndex": PoseDistanceIndex(span=20), "PathLengthIndex": PathLengthIndex(span=20)},
        ["max_thw", "max_hw"],
        {"a span per video": False, "a span per temporal patch": True},
    ),
)
def test_they_are_those_of_the_host(index: PoseTimeIndex, after: Any, in_spans: bool) -> None:
    """Of videos and images in any order, several per sequence, padded on either side, some without cameras."""
    base, shifted = build("plain").model_spec(), 0
    for seed, extra in product(range(8), ExtraTokens):
        case = drawn_case(seed, extra, in_spans)
        makes = builder(replace(base, time_index=index, text_after_vision=after), extra, in_spans)
        rows = [[case.scenes[i] for i in row] for row in case.scene_index]
        layout = makes.layout(case.ids, case.mask, rows)
        if not layout.media:
            continue
        poses, K = random_cameras(len(rows), max(int(layout.camera_index().max()) + 1, 1), seed)
        known = torch.rand(poses.shape[:2], generator=torch.Generator().manual_seed(seed)) < 0.7
        offset = torch.randint(3, case.ids.shape, generator=torch.Generator().manual_seed(seed)) * (case.ids == TEXT)
        cameras = Cameras(poses, K, valid_index(layout.camera_index(), known))
        expected = layout_position_ids(layout, index, text_after_vision=after, cameras=cameras) - offset
        at_time_0 = builder(replace(base, time_index=ConstantIndex(), text_after_vision=after), extra, in_spans)
        still = at_time_0.build(case.ids, case.mask, case.scenes, case.scene_index, position_offset=offset)
        assert still.position_ids is not None
        deferred = DeferredPositions(layout, still.position_ids, index, after)
        found = deferred.compute(poses.requires_grad_(), known)
        assert torch.equal(found, expected) and not found.requires_grad
        shifted += not torch.equal(found[1:], deferred.position_ids[1:])
    assert (shifted > 10) == (after == "max_thw")


@pytest.mark.parametrize("name", INDICES)
def test_answers_are_those_by_equal_cameras_of_the_dataset(name: str) -> None:
    """The position behind the prefix is read in the step too."""
    by_dataset = build(name)
    asked = batch(by_dataset, *SCENES)
    task = predicting(build(name, camera_source="predicted", **VGGT), [each.geometry for each in SCENES])
    bare = batch(task, *(replace(each, geometry=None) for each in SCENES))
    assert all(prompt.next_position is not None for prompt in asked.prompts)
    assert all(prompt.next_position is None for prompt in bare.prompts)
    assert replies(task, bare) == replies(by_dataset, asked)


@pytest.mark.parametrize("name", INDICES)
def test_auto_waits_for_predicted_cameras_where_the_dataset_has_none(name: str) -> None:
    task, shown = build(name, camera_source="auto", **VGGT), SCENES
    assert sequences(batch(task, *shown, training=True)).position_ids is not None
    bare = replace(shown[1], geometry=None)
    mixed = batch(task, shown[0], bare, training=True)
    assert sequences(mixed).position_ids is None and mixed.scenes[0].cameras is not None
    predicting(task, [scene("c", seed=5).geometry, shown[1].geometry])  # the first is not taken
    expected = positions(build(name), batch(build(name), *shown, training=True))
    assert torch.equal(positions(task, mixed), expected)
