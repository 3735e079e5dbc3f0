"""What a teacher gives: when it is built and asked, what its targets are of, and their scale."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import VideoQADataModule
from tests.zoo import asking
from tests.zoo.asking import QUESTIONS, scene
from tests.zoo.objectives.taught import FAMILY, begin, task, training_batch
from zoo import (
    AddFusion,
    DatasetGeometry,
    DatasetPoses,
    Distillation,
    GeometryCache,
    InputError,
    Teacher,
    TeacherPose,
    TinyVGGT,
    VideoQATask,
)
from zoo.geometry import CachedGeometry, SceneGeometry
from zoo.geometry.base import ScaleSource
from zoo.weights.checkpoint import check_frozen


def test_targets_are_of_the_first_frame_of_each_patch() -> None:
    made: Any = task(Teacher(DatasetGeometry))
    batch: Any = training_batch(made)
    (first, second), (own, other) = batch.scenes, made.compute_teacher_targets(batch)
    torch.testing.assert_close(own.depth, first.geometry.depth[::2])
    torch.testing.assert_close(own.pose_enc[0], torch.tensor([0, 0, 0, 0, 0, 0, 1.0, *own.pose_enc[0, 7:]]))
    assert own.meters_per_unit == 1 and len(own.tokens) == 1
    for share, kept in ((0.4, slice(0, 4)), (-0.4, slice(-4, None))):  # of the first channels, and of the last
        (some,) = Teacher(DatasetGeometry, token_channels=share)([first], 16)
        assert some is not None and torch.equal(some.tokens[0], own.tokens[0][..., kept])
    # the control: those of another scene
    made = task(Teacher(DatasetGeometry, shuffled=True))
    shuffled = made.compute_teacher_targets(batch)
    torch.testing.assert_close(shuffled[0].depth, other.depth)
    assert made.model_spec(training=True).least_batch_size == 2
    assert task(Teacher(DatasetGeometry)).model_spec(training=True).least_batch_size == 1
    # nothing of its own, where no other scene has as many views
    shorter = replace(second, frames=second.frames[:4], geometry=second.geometry[:4])
    found = Teacher(DatasetGeometry, shuffled=True)([first, shorter, second], 16)
    assert found[1] is None and found[0] is not None and found[2] is not None
    torch.testing.assert_close(found[0].depth, other.depth)
    torch.testing.assert_close(found[2].depth, own.depth)


def test_a_shuffled_teacher_needs_a_batch_of_two_scenes() -> None:
    made = task(Teacher(DatasetGeometry, shuffled=True))
    data = VideoQADataModule(batch_size=1)
    data.trainer = SimpleNamespace(lightning_module=made)  # type: ignore[assignment]
    with pytest.raises(InputError, match="batch_size 1: --model.teacher.shuffled .* needs 2 or more"):
        data.setup("fit")


def test_the_scale_is_that_of_the_datasets_cameras() -> None:
    """In another unit of the dataset, VGGT's lengths are as many meters more."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"], seed=0)
    made = task(None)
    scenes = training_batch(made).scenes[:1]
    teacher = Teacher(vggt, scale=DatasetPoses)
    (found,) = teacher(scenes, 16)
    assert scenes[0].geometry is not None
    scenes[0] = replace(scenes[0], geometry=scenes[0].geometry.scaled(3.0))
    (larger,) = teacher(scenes, 16)
    assert found.meters_per_unit is not None and larger.meters_per_unit is not None
    torch.testing.assert_close(larger.meters_per_unit, 3 * found.meters_per_unit, rtol=1e-4, atol=0)


def test_a_scene_without_a_scale_is_left_out_of_it_alone() -> None:
    """As one whose camera stands still; nothing is measured that no objective learns."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"], seed=0)
    scenes = training_batch(task(None)).scenes
    assert len(scenes) == 2 and scenes[0].geometry is not None
    assert scenes[0].geometry.world_to_camera is not None
    scenes[0].geometry.world_to_camera[:] = torch.eye(4)
    teacher = Teacher(vggt, scale=DatasetPoses)
    with pytest.warns(UserWarning, match="MetricScale leaves a scene out: .* not on one line"):
        still, moving = teacher(scenes, 16)
    assert still is not None and moving is not None
    assert still.meters_per_unit is None and still.depth is not None and moving.meters_per_unit is not None
    teacher = Teacher(vggt, scale=DatasetPoses)
    teacher.targets = frozenset({"depth"})
    with warnings.catch_warnings(action="error"):
        assert all(each is not None and each.meters_per_unit is None for each in teacher(scenes, 16))


def test_its_outputs_are_cached_like_3d_tokens(tmp_path: Path) -> None:
    """Another training reads them; the scale gets frames in the encoder's size, and the confidence of depth."""

    class FrameWidth(ScaleSource):
        requires_depth = True

        def meters_per_unit(self, scene: SceneGeometry, frames: Tensor, given: SceneGeometry | None) -> float:
            assert scene.depth is not None and scene.confidence is not None
            assert frames.shape[-2:] == scene.depth.shape[-2:] == (56, 84)
            return frames.shape[-1]

    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"], seed=0)
    scenes = training_batch(task(None)).scenes
    expected = Teacher(vggt, scale=FrameWidth)(scenes, 16)
    for number in (2, 0):
        teacher = Teacher(vggt, cache=GeometryCache(str(tmp_path)), scale=FrameWidth)
        found = teacher(scenes, 16)
        assert isinstance(teacher.encoder, CachedGeometry) and teacher.encoder.num_computed == number
        for kept, computed in zip(found, expected, strict=True):
            torch.testing.assert_close(kept.pose_enc, computed.pose_enc)
            torch.testing.assert_close(kept.depth, computed.depth)
            torch.testing.assert_close(kept.tokens[0], computed.tokens[0].bfloat16())
            assert kept.meters_per_unit == computed.meters_per_unit == 84
    assert scenes[0].frames is not None
    scenes[0] = replace(scenes[0], frames=scenes[0].frames.flip(-1))  # the control: other frames are computed
    teacher(scenes, 16)
    assert isinstance(teacher.encoder, CachedGeometry) and teacher.encoder.num_computed == 1


def test_only_the_heads_of_what_is_learned_are_asked_for(tmp_path: Path) -> None:
    class OfDepth(ScaleSource):
        requires_depth = True

        def meters_per_unit(self, scene: SceneGeometry, frames: Tensor, given: SceneGeometry | None) -> float:
            return 1.0

    scenes = training_batch(task(None)).scenes
    for cache in (None, GeometryCache(str(tmp_path))):
        for learned, heads in ((TeacherPose("none"), ["camera"]), (Distillation(64, indices=[2]), [])):
            vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=heads, seed=0)
            made = VideoQATask(
                backbone=asking.tiny_backbone(FAMILY), teacher=Teacher(vggt, cache), objectives=[learned]
            )
            assert made.teacher is not None
            (found, _) = made.teacher(scenes, 16)
            assert found is not None and found.depth is None
            assert (bool(found.tokens), found.pose_enc is None) == (not heads, not heads)
        with pytest.raises(InputError, match="no depth head"):  # the controls: the scale needs it, or an objective
            Teacher(partial(TinyVGGT, embed_dim=32, depth=2), cache, scale=OfDepth)(scenes, 16)
        with pytest.raises(InputError, match="no depth head"):
            task(Teacher(partial(TinyVGGT, embed_dim=32, depth=2), cache)).teacher(scenes, 16)  # type: ignore[misc]


def test_a_teacher_sees_frames_beside_a_cached_geometry(tmp_path: Path) -> None:
    """Data workers leave frames out where they have read the model's geometry of a cache."""
    parts: dict[str, Any] = {"geometry": partial(TinyVGGT, embed_dim=32, depth=2, seed=0), "fusion": AddFusion}
    parts["geometry_cache"] = GeometryCache(str(tmp_path))
    taught, alone = task(Teacher(DatasetGeometry), **parts), task(None, **parts)
    assert taught.model_spec(training=True).geometry_reader is None and taught.model_spec().geometry_reader is not None
    assert alone.model_spec(training=True).geometry_reader is not None  # the control


def test_a_teacher_is_neither_built_nor_asked_without_a_training() -> None:
    def refuse() -> Any:
        raise AssertionError("built")

    made = task(Teacher(refuse, scale=refuse)).eval()
    asked = asking.batch(made, scene("a", QUESTIONS[:1], family=FAMILY))
    made.can_answer = True
    assert made.predict_batch(asked)[0]["error"] is None and not made.model_spec().requires_frames
    data = VideoQADataModule()
    data.trainer = SimpleNamespace(lightning_module=made)  # type: ignore[assignment]
    data.setup("test")
    with pytest.raises(AssertionError, match="built"):  # the controls
        data.setup("fit")
    with pytest.raises(AssertionError, match="built"):
        made.losses(training_batch(made))


def test_a_training_requires_what_the_teacher_does() -> None:
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"])
    for teacher, cameras, depth in (
        (Teacher(DatasetGeometry), True, True),
        (Teacher(vggt), False, False),
        (Teacher(vggt, scale=DatasetPoses), True, False),
    ):
        made = task(teacher)
        needs = made.model_spec(training=True)
        assert (needs.requires_frames, needs.requires_cameras, needs.requires_depth) == (True, cameras, depth)
        assert not made.model_spec().requires_frames and not made.model_spec().requires_cameras


def test_a_resumed_training_has_the_files_of_its_teacher(tmp_path: Path) -> None:
    weights = tmp_path / "teacher.safetensors"
    weights.write_text("one")

    class Released(DatasetGeometry):
        path, files = "teacher", (weights,)

    class ReleasedScale(DatasetPoses):
        path, files = "scale", (weights,)

    made = task(Teacher(Released, scale=ReleasedScale))
    assert not made.required_files  # an evaluation needs none
    begin(made)
    before = made.required_files
    assert before.keys() == {"teacher", "scale of the teacher"}
    begin(made)
    check_frozen(before, made.required_files, "last.ckpt")  # the control
    weights.write_text("another")
    assert made.required_files == before  # those that were read
    begin(made)
    with pytest.raises(InputError, match="last.ckpt was trained with the frozen .*teacher .* now holds another"):
        check_frozen(before, made.required_files, "last.ckpt")
