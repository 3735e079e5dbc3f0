"""--model.camera_source: cameras given with the data, VGGT's own, or either; and the unit of their lengths."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import Rooms, VideoQADataModule
from tests.conftest import ROOMS
from tests.tiny import VGGT, inputs_of, logits_of, prompts_of, tiny_backbone, tiny_batch, tiny_model, tiny_scene
from tests.zoo.two_videos import cameras, sequences
from zoo import (
    AddFusion,
    Cameras,
    ConcatSplitFusion,
    DatasetGeometry,
    DatasetPoses,
    InputError,
    PointRoPE,
    PoseDistanceIndex,
    PRoPE,
    SpatialVLM,
    TinyVGGT,
)
from zoo.geometry import SceneGeometry
from zoo.model_spec import ModelSpec
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks import VideoQATask

KINDS = ["PRoPE by VGGT's cameras", "PRoPE on ConcatSplitFusion"]  # without and with 3D tokens


def model(kind: str, source: str, **parts: Any) -> VideoQATask:
    """The same weights whatever the source, and a camera head whose fields of view are sound."""
    ours = tiny_model(kind, camera_source=source, **parts)
    last = ours.model.geometry.vggt.camera_head.pose_branch.fc2 if ours.model.geometry is not None else None
    if last is not None:
        with torch.no_grad():
            last.weight[7:].mul_(0.01)
            last.bias[7:] = 0.25
    return ours


def without_cameras(loaded: LoadedScene) -> LoadedScene:
    return replace(loaded, geometry=None)


def one() -> LoadedScene:
    return tiny_scene("a")


def other() -> LoadedScene:
    return tiny_scene("b", steps=2, seed=1)


@torch.no_grad()
def logits(ours: VideoQATask, *scenes: LoadedScene) -> list[Tensor]:
    """Those of every question, without padding."""
    asked = tiny_batch(ours, *scenes)
    found = logits_of(ours, inputs_of(ours, asked))
    return [row[: len(ids)] for row, ids in zip(found, prompts_of(asked), strict=True)]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.allclose(x, y, atol=1e-4) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_auto_takes_the_datasets_cameras_before_predicted_ones(kind: str) -> None:
    given, found, either = (model(kind, source) for source in ("dataset", "predicted", "auto"))
    with_data, with_vggt = logits(given, one()), logits(found, one())
    assert equal(logits(either, one()), with_data)
    assert equal(logits(either, without_cameras(one())), with_vggt)
    assert equal(logits(found, without_cameras(one())), with_vggt)  # it doesn't look at the data's
    assert not equal(with_data, with_vggt)
    mixed = logits(either, one(), without_cameras(other()))
    assert equal(mixed, [*with_data, *logits(found, other())])
    mixed = logits(either, without_cameras(one()), other())
    assert equal(mixed, [*with_vggt, *logits(given, other())])


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_cameras_count_as_none(kind: str) -> None:
    either, unknown, depth_alone = model(kind, "auto"), one(), one()
    unknown.geometry.has_camera = torch.zeros(6, dtype=torch.bool)
    depth_alone = replace(depth_alone, geometry=SceneGeometry(depth=depth_alone.geometry.depth))
    expected = logits(either, without_cameras(one()))
    assert equal(logits(either, unknown), expected) and equal(logits(either, depth_alone), expected)
    some = one()
    some.geometry.has_camera = torch.tensor([False] * 4 + [True] * 2)
    assert not equal(logits(either, some), expected)


def test_requirements_of_each_camera_source() -> None:
    for source, needs in (("dataset", True), ("predicted", False), ("auto", False)):
        ours = model("PRoPE on ConcatSplitFusion", source)
        assert ours.model_spec().requires_cameras == needs and ours.model_spec().requires_frames, source
    by_dataset = model("PRoPE on ConcatSplitFusion", "dataset")
    with pytest.raises(InputError, match="no cameras, and this model needs them"):
        by_dataset.loss(tiny_batch(by_dataset, without_cameras(one()), training=True))
    for record in by_dataset.predict_batch(tiny_batch(by_dataset, without_cameras(one()))):
        assert "no cameras, and this model needs them" in record["error"]
    ours = SpatialVLM(backbone=tiny_backbone(), camera_encoding=PRoPE(), camera_source="auto", geometry=DatasetGeometry)
    assert ours.model_spec().requires_cameras  # there is nobody to find them
    by_depth = SpatialVLM(backbone=tiny_backbone(), camera_encoding=PointRoPE(), camera_source="auto", **VGGT)
    assert by_depth.model_spec().requires_cameras and by_depth.model_spec().requires_depth  # in one unit


def test_requirements_follow_the_active_branches() -> None:
    ours = model("PRoPE on ConcatSplitFusion", "dataset")
    both = logits(ours, one())
    ours.model.fusion.active_branches = "2d"
    assert not ours.model_spec().requires_frames  # so that the batch has none
    flat = logits(ours, one())
    assert not equal(flat, both)
    ours.model.fusion.active_branches = "both"
    assert ours.model_spec().requires_frames and equal(logits(ours, one()), both)


class Refuses(TinyVGGT):
    """A geometry whose cameras must not be asked for."""

    def enable_head(self, head: str) -> None:
        raise AssertionError("a camera head in vain")


def nothing() -> TinyVGGT:
    raise AssertionError("a geometry in vain")


def test_models_without_cameras_ignore_the_camera_source() -> None:
    plain = SpatialVLM(backbone=tiny_backbone(), camera_source="auto", geometry=nothing)
    assert plain.geometry is None and not plain.model_spec().requires_frames and not plain.model_spec().requires_cameras
    for fusion in (AddFusion, ConcatSplitFusion):
        fused = SpatialVLM(
            backbone=tiny_backbone(),
            fusion=fusion,
            camera_source="auto",
            geometry=lambda: Refuses(embed_dim=16, num_heads=2),
        )
        assert not fused.model_spec().requires_cameras and fused.model_spec().requires_frames
    assert (
        SpatialVLM(backbone=tiny_backbone(), camera_encoding=PRoPE(), geometry=nothing).geometry is None
    )  # the default: given
    with pytest.raises(AssertionError, match="geometry in vain"):
        SpatialVLM(
            backbone=tiny_backbone(), time_index=PoseDistanceIndex(), camera_source="auto", geometry=nothing
        )  # positions go by cameras


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({}, "a part that reads them: --model.camera_encoding, --model.view_mixer, or one of --model.objectives"),
        ({"camera_encoding": PRoPE()}, "needs a --model.geometry that predicts cameras"),
        ({"camera_encoding": PRoPE(), "geometry": DatasetGeometry}, "needs a --model.geometry that predicts cameras"),
        ({"camera_encoding": PointRoPE(), **VGGT}, "this VGGT has no depth head"),
    ],
)
def test_predicted_cameras_need_an_encoder_and_a_reader(parts: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        SpatialVLM(backbone=tiny_backbone(), camera_source="predicted", **parts)
    SpatialVLM(backbone=tiny_backbone(), camera_source="auto", **parts)  # which asks for less


def test_in_memory_the_choice_is_the_same() -> None:
    """`SpatialVLM.logits`, where cameras come a grid step."""
    given = sequences()
    frames = [torch.rand(2 * int(t), 3, 14 * int(h), 14 * int(w)) for t, h, w in given["video_grid_thw"]]
    parts: dict[str, Any] = {**VGGT}
    found, either = (
        SpatialVLM(backbone=tiny_backbone(), camera_encoding=PRoPE(), camera_source=source, **parts)
        for source in ("predicted", "auto")
    )
    for ours in (found, either):
        with torch.no_grad():
            ours.geometry.vggt.camera_head.pose_branch.fc2.bias[7:] = 0.25
    with torch.no_grad():
        own: Cameras = cameras()
        by_data = SpatialVLM(backbone=tiny_backbone(), camera_encoding=PRoPE()).logits(**given, cameras=own)
        by_vggt = found.logits(**given, frames=frames, cameras=own)
        per_frame = Cameras(*(each.repeat_interleave(2, 1) for each in (own.world_to_camera, own.K_normalized)))
        with pytest.warns(UserWarning, match="one per temporal patch and not per frame"):
            either.logits(**given, cameras=per_frame)
        assert torch.equal(either.logits(**given, cameras=own), by_data)  # and no frames are asked for
        assert torch.equal(either.logits(**given, frames=frames), by_vggt)
        assert (by_data - by_vggt)[given["attention_mask"].bool()].abs().max() > 1e-3
        with pytest.raises(InputError, match="needs the frames of each video"):
            either.logits(**given)


# ---- meters ----------------------------------------------------------------------------------------------------


def aligned(source: str = "predicted", **parts: Any) -> VideoQATask:
    """A model whose predicted lengths are aligned to the dataset's cameras."""

    def vggt() -> TinyVGGT:
        return TinyVGGT(embed_dim=32, depth=2, scale_from=DatasetPoses())

    return model(KINDS[0], source, geometry=vggt, **parts)


def test_predicted_lengths_in_meters_reach_the_decoder() -> None:
    ours, plain = aligned(), model(KINDS[0], "predicted")
    assert ours.model_spec().requires_cameras and not plain.model_spec().requires_cameras
    assert (ours.model_spec().arbitrary_unit, plain.model_spec().arbitrary_unit) == (None, "TinyVGGT")
    expected, far, moved = logits(ours, one()), one(), one()
    far = replace(far, geometry=far.geometry.scaled(3.0))
    moved.geometry.world_to_camera = moved.geometry.world_to_camera @ one().geometry.world_to_camera[0]
    assert equal(logits(ours, moved), expected)  # whatever the world of the dataset
    assert not equal(logits(ours, far), expected) and not equal(logits(plain, one()), expected)
    assert equal(logits(plain, far), logits(plain, one()))  # which reads none of it
    assert all(
        "no cameras, and this model needs them" in record["error"]
        for record in tiny_batch(ours, without_cameras(one())).failed
    )
    two = one()
    two.geometry.has_camera = torch.arange(6) < 2
    with pytest.raises(InputError, match="needs three cameras"):
        ours.model.encode_scenes(tiny_batch(ours, two))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("dataset", "is for predicted cameras: set --model.camera_source"),
        ("auto", "DatasetPoses needs cameras, where --model.camera_source auto predicts none"),
    ],
)
def test_a_scale_without_effect_is_refused(source: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        aligned(source, fusion=AddFusion)


def aligned_vggt() -> TinyVGGT:
    return TinyVGGT(embed_dim=16, num_heads=2, scale_from=DatasetPoses())


@pytest.mark.parametrize(
    ("parts", "unit"),
    [
        ({"camera_encoding": PRoPE()}, "TinyVGGT"),
        ({"camera_encoding": PRoPE(scale="mean")}, None),  # in units of the scene itself
        ({"camera_encoding": PRoPE(pose_component="rotation")}, None),
        ({"time_index": PoseDistanceIndex()}, "TinyVGGT"),
        ({"time_index": PoseDistanceIndex("center")}, None),
        ({"camera_source": "dataset", "fusion": AddFusion}, "TinyVGGT"),  # by its 3D tokens
        ({"camera_source": "dataset", "fusion": AddFusion, "geometry": DatasetGeometry}, None),
        ({"camera_encoding": PRoPE(), "camera_source": "dataset"}, None),
        ({"camera_encoding": PRoPE(), "geometry": aligned_vggt}, None),
        (
            {"camera_encoding": PRoPE(), "geometry": aligned_vggt, "fusion": AddFusion},
            "TinyVGGT",
        ),  # tokens are not aligned
    ],
)
def test_which_models_read_lengths_in_a_unit_of_their_own(parts: dict[str, Any], unit: str | None) -> None:
    ours = SpatialVLM(backbone=tiny_backbone(), **{"camera_source": "predicted", **VGGT, **parts})
    assert ours.model_spec().arbitrary_unit == unit


def test_questions_in_meters_warn_of_such_lengths(rooms_root: Path) -> None:
    def said(unit: str | None, *kinds: str) -> list[str]:
        data = VideoQADataModule(Rooms(scenes=ROOMS, root=str(rooms_root), workers=1), question_types=list(kinds))
        data.spec = ModelSpec(arbitrary_unit=unit)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            data.scenes("val"), data.scenes("test")
        return [str(warning.message) for warning in caught]

    (text,) = said("TinyVGGT", "object_counting", "room_size_estimation")  # once
    assert text.startswith("TinyVGGT has lengths in a unit of each scene's own") and "scale_from DatasetPoses" in text
    assert not said("TinyVGGT", "object_counting") and not said(None, "room_size_estimation")
