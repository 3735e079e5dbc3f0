"""Objectives that learn from a teacher: in training only, by which tokens, and from which targets."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodules import NoisyCameras, VideoQADataModule
from datamodules.collate import TrainingCollate
from tests.tiny import QUESTIONS, RATES, tiny_backbone, tiny_batch, tiny_scene
from zoo import (
    GRPO,
    AddFusion,
    DatasetGeometry,
    DatasetPoses,
    Distillation,
    GeometryCache,
    InputError,
    MaskedViews,
    MetricScale,
    Teacher,
    TeacherDepth,
    TeacherPose,
    TinyDA3,
    TinyVGGT,
    VideoQATask,
)
from zoo.checkpoints import unofficial_parts
from zoo.geometry import CachedGeometry, ScaleSource, SceneGeometry
from zoo.objectives.base import check_teacher
from zoo.objectives.teacher import geovr_layers
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks.training_cost import BatchSizes, sequence_sizes
from zoo.weights.checkpoint import check_frozen

FAMILY = "Qwen3-VL"
SMALL: dict[str, Any] = {"features": 8, "channels": [8, 8, 8, 8]}


def taught(
    teacher: Teacher | None, token: Any = "training", width: int = 10, side: int = 32, **options: Any
) -> VideoQATask:
    """Return the task with all four objectives."""
    torch.manual_seed(0)
    objectives = [
        TeacherPose(token),
        TeacherDepth(side=side, **SMALL),
        Distillation(width, indices=[2] if width == 10 else [1, 3]),
        MetricScale(token),
    ]
    backbone = tiny_backbone(FAMILY, layers=3, key_value_heads=2)
    return VideoQATask(backbone=backbone, learning_rates=RATES, teacher=teacher, objectives=objectives, **options)


def training_batch(made: VideoQATask, *scenes: LoadedScene) -> Batch:
    """Return a batch of scenes, by default two."""
    shown = tiny_scene("a", QUESTIONS[:2], family=FAMILY), tiny_scene("b", QUESTIONS[1:2], seed=1, family=FAMILY)
    collate = TrainingCollate(replace(made.model_spec(training=True), requires_frames=True, geometry_reader=None))
    return collate(scenes or shown)


def begin(made: VideoQATask) -> None:
    """Begin a training."""
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    made._trainer = trainer
    made.configure_model()


def losses(made: VideoQATask) -> dict[str, Tensor]:
    """Return the losses of a training batch."""
    return made.train().losses(training_batch(made))


def heads(made: VideoQATask) -> dict[str, nn.Parameter]:
    """Return the parameters of the objectives."""
    return {
        name.removeprefix("objectives."): value
        for name, value in made.model.named_parameters()
        if name.startswith("objectives.")
    }


@pytest.mark.parametrize("name", ["dataset", "VGGT"])
def test_what_is_learned(name: str) -> None:
    """All parts get a gradient from each kind of teacher."""
    if name == "dataset":
        made = taught(Teacher(DatasetGeometry))
    else:
        vggt = partial(TinyVGGT, embed_dim=32, depth=4, layers=[1, 3], heads=["camera", "depth"])
        made = taught(Teacher(vggt, token_channels=0.5), width=32, side=28)
    found = losses(made)
    assert {"TeacherPose/rotation", "TeacherDepth", "Distillation", "MetricScale"} <= found.keys()
    assert not found["MetricScale"] if name == "VGGT" else found["MetricScale"] > 0  # VGGT knows no meters
    found["loss"].backward()
    for parameter, value in heads(made).items():
        if not (name == "VGGT" and "MetricScale" in parameter):
            assert value.grad is not None and value.grad.any(), parameter
    assert not any("teacher" in each for each in made.state_dict())
    token = made.model.objectives["TeacherPose"].token  # the first view has one of its own
    assert token is not None and token.shape == (2, 64) and not torch.equal(*token.grad)


def test_the_layers_of_the_decoder_are_those_published_for_the_kind_of_teacher() -> None:
    da3 = partial(TinyDA3, [0, 1, 2, 3], embed_dim=32, depth=4, num_heads=2, features=8, heads=["camera", "depth"])
    objectives = [TeacherPose(), TeacherDepth(side=28, **SMALL), Distillation(32)]
    backbone = tiny_backbone(FAMILY, layers=4, key_value_heads=2)
    made: Any = VideoQATask(backbone=backbone, teacher=Teacher(da3, token_channels=-0.5), objectives=objectives)
    assert made.model.objectives["Distillation"].indices == (1, 2, 3, 4)  # of VGGT
    begin(made)
    assert made.model.objectives["Distillation"].indices == (2, 3, 3, 4)
    assert {layer for each in made.model.active_objectives for layer in each.layers} == {1, 2}
    losses(made)["loss"].backward()
    for parameter, value in heads(made).items():
        assert value.grad is not None and value.grad.any(), parameter
    for objective, part in ((Distillation(8), "distill"), (TeacherDepth(**SMALL), "depth")):
        objective.bind(8, 28)
        objective.match_teacher("da3")
        assert objective.indices == geovr_layers("da3", 28)[part] != geovr_layers("vggt", 28)[part]
    chosen = Distillation(8, indices=[1, 3])
    chosen.bind(8, 28)
    chosen.match_teacher("da3")
    assert chosen.indices == (1, 3)  # the control


def test_the_tokens_are_in_the_prompts_of_a_training_alone() -> None:
    teacher = Teacher(DatasetGeometry)
    lengths = {}
    for token in ("training", "always", "none"):
        made = taught(teacher, token)
        batch = training_batch(made)
        assert batch.sequences is not None
        lengths[token] = batch.sequences.lengths
        asked = tiny_batch(made, tiny_scene("a", QUESTIONS[:1], family=FAMILY))
        lengths[f"{token}, asked"] = asked.prompts[0].prefix.lengths
        made.eval().model.encode_scenes(asked)
        losses(made)["loss"].backward()
    steps = 3
    more = steps + 1  # one per view, and one at the end of the video
    assert [long - short for long, short in zip(lengths["training"], lengths["none"], strict=True)] == [more, more]
    assert lengths["always"] == lengths["training"]
    assert lengths["training, asked"] == lengths["none, asked"]
    assert lengths["always, asked"][0] == lengths["none, asked"][0] + more
    # at inference it is the stock model
    assert not unofficial_parts(taught(teacher, "training").model) and unofficial_parts(taught(teacher, "always").model)


@pytest.mark.parametrize("kind", ["l1", "silog"])
def test_unknown_depth_has_no_error_and_no_gradient(kind: str) -> None:
    made: Any = taught(Teacher(DatasetGeometry))
    batch = training_batch(made)
    made.model.objectives["TeacherDepth"].kind = kind
    targets = []
    for given in made.compute_teacher_targets(batch):
        depth = torch.zeros_like(given.depth)
        depth[:, :16] = 2.0
        targets.append(given._replace(depth=depth))
    found = made.train().model(batch, targets)["TeacherDepth"]
    found.backward()
    assert found > 0.1
    gradients = {n: p.grad for n, p in heads(made).items() if n.startswith("TeacherDepth")}
    assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())
    for given in targets:
        given.depth[:] = 0.0
    assert made.model(batch, targets)["TeacherDepth"] < 0.01


def test_what_does_not_fit_is_refused() -> None:
    teacher = Teacher(DatasetGeometry)
    made: Any = taught(teacher)
    made.model.objectives["Distillation"].teacher_width = 32
    with pytest.raises(InputError, match="teacher_width 32, and the teacher's tokens 10 channels"):
        losses(made)
    with pytest.raises(InputError, match=r"reads hidden states \[4\] of a decoder with 3"):
        deep = Distillation(10, indices=[4])
        VideoQATask(backbone=tiny_backbone(FAMILY, layers=3), teacher=teacher, objectives=[deep])
    with pytest.raises(InputError, match="TeacherPose and MetricScale"):
        taught(teacher, algorithm=GRPO())
    with pytest.raises(InputError, match="MaskedViews"):
        VideoQATask(objectives=[MaskedViews()], algorithm=GRPO())
    # what no teacher gives
    objectives, vggt = made.model.active_objectives, partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"])
    check_teacher(objectives, teacher.given)
    check_teacher(objectives, Teacher(vggt, scale=DatasetPoses).given)
    for given, message in (
        (None, "TeacherPose learns the pose_enc of a teacher: name one"),
        (Teacher(vggt).given, "MetricScale learns the meters_per_unit .* another --model.teacher.scale"),
        (Teacher(partial(DatasetGeometry, depth=False)).given, "TeacherDepth learns the depth .*teacher.encoder"),
    ):
        with pytest.raises(InputError, match=message):
            check_teacher(objectives, given)


def test_the_plan_of_a_training_counts_its_tokens() -> None:
    assert sequence_sizes(taught(None).model, BatchSizes(6, height=64, width=96))[0] == 3 * (6 + 1) + 1


# ---- what a teacher gives --------------------------------------------------------------------------------------------


def test_targets_are_of_the_first_frame_of_each_patch() -> None:
    made: Any = taught(Teacher(DatasetGeometry))
    batch: Any = training_batch(made)
    (first, second), (own, other) = batch.scenes, made.compute_teacher_targets(batch)
    torch.testing.assert_close(own.depth, first.geometry.depth[::2])
    torch.testing.assert_close(own.pose_enc[0], torch.tensor([0, 0, 0, 0, 0, 0, 1.0, *own.pose_enc[0, 7:]]))
    assert own.meters_per_unit == 1 and len(own.tokens) == 1
    for share, kept in ((0.4, slice(0, 4)), (-0.4, slice(-4, None))):  # of the first channels, and of the last
        (some,) = Teacher(DatasetGeometry, token_channels=share)([first], 16)
        assert some is not None and torch.equal(some.tokens[0], own.tokens[0][..., kept])
    # the control: those of another scene
    made = taught(Teacher(DatasetGeometry, shuffled=True))
    shuffled = made.compute_teacher_targets(batch)
    torch.testing.assert_close(shuffled[0].depth, other.depth)
    assert made.model_spec(training=True).least_batch_size == 2
    assert taught(Teacher(DatasetGeometry)).model_spec(training=True).least_batch_size == 1
    # nothing of its own, where no other scene has as many views
    shorter = replace(second, frames=second.frames[:4], geometry=second.geometry[:4])
    found = Teacher(DatasetGeometry, shuffled=True)([first, shorter, second], 16)
    assert found[1] is None and found[0] is not None and found[2] is not None
    torch.testing.assert_close(found[0].depth, other.depth)
    torch.testing.assert_close(found[2].depth, own.depth)


def test_the_scale_is_that_of_the_datasets_cameras() -> None:
    """If the dataset's unit grows, the meters per unit of VGGT grow by the same factor."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"], seed=0)
    made = taught(None)
    scenes = training_batch(made).scenes[:1]
    teacher = Teacher(vggt, scale=DatasetPoses)
    (found,) = teacher(scenes, 16)
    assert scenes[0].geometry is not None
    scenes[0] = replace(scenes[0], geometry=scenes[0].geometry.scaled(3.0))
    (larger,) = teacher(scenes, 16)
    assert found.meters_per_unit is not None and larger.meters_per_unit is not None
    torch.testing.assert_close(larger.meters_per_unit, 3 * found.meters_per_unit, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ["dataset", "scale"])
def test_a_teacher_is_told_the_true_cameras(kind: str) -> None:
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"], seed=0)
    teacher = Teacher(DatasetGeometry) if kind == "dataset" else Teacher(vggt, scale=DatasetPoses)
    loaded = tiny_scene("a", QUESTIONS[:2], family=FAMILY)
    wrong = NoisyCameras(20.0, 0.5)(loaded, lambda: loaded)
    scene, told_wrong = training_batch(taught(None), loaded, wrong).scenes
    (expected,), (found,) = teacher([scene], 16), teacher([told_wrong], 16)
    (of_wrong,) = teacher([replace(told_wrong, true_geometry=None)], 16)  # the control
    assert expected is not None and found is not None and of_wrong is not None
    for name in ("pose_enc", "depth", "meters_per_unit"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    name = "pose_enc" if kind == "dataset" else "meters_per_unit"
    assert not torch.allclose(getattr(of_wrong, name), getattr(expected, name), rtol=1e-2)


def test_a_scene_without_a_scale_is_left_out_of_it_alone() -> None:
    """A camera that stands still gives no scale. Without an objective that learns it, the scale is not measured."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"], seed=0)
    scenes = training_batch(taught(None)).scenes
    assert len(scenes) == 2 and scenes[0].geometry is not None
    assert scenes[0].geometry.world_to_camera is not None
    scenes[0].geometry.world_to_camera[:] = torch.eye(4)
    teacher = Teacher(vggt, scale=DatasetPoses)
    with pytest.warns(UserWarning, match="MetricScale leaves a scene out"):
        still, moving = teacher(scenes, 16)
    assert still is not None and moving is not None
    assert still.meters_per_unit is None and still.depth is not None and moving.meters_per_unit is not None
    teacher = Teacher(vggt, scale=DatasetPoses)
    teacher.targets = frozenset({"depth"})
    with warnings.catch_warnings(action="error"):
        assert all(each is not None and each.meters_per_unit is None for each in teacher(scenes, 16))


def test_its_outputs_are_cached_like_3d_tokens(tmp_path: Path) -> None:
    """A second teacher reads them. The scale gets frames of the encoder's size and the confidence of depth."""

    class FrameWidth(ScaleSource):
        requires_depth = True

        def meters_per_unit(self, scene: SceneGeometry, frames: Tensor, given: SceneGeometry | None) -> float:
            assert scene.depth is not None and scene.confidence is not None
            assert frames.shape[-2:] == scene.depth.shape[-2:] == (56, 84)
            return frames.shape[-1]

    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"], seed=0)
    scenes = training_batch(taught(None)).scenes
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


def test_a_teacher_sees_frames_beside_a_cached_geometry(tmp_path: Path) -> None:
    """Data workers may leave frames out if they read geometry from a cache, but a teacher needs them."""
    parts: dict[str, Any] = {"geometry": partial(TinyVGGT, embed_dim=32, depth=2, seed=0), "fusion": AddFusion}
    parts["geometry_cache"] = GeometryCache(str(tmp_path))
    learning, alone = taught(Teacher(DatasetGeometry), **parts), taught(None, **parts)
    assert (
        learning.model_spec(training=True).geometry_reader is None and learning.model_spec().geometry_reader is not None
    )
    assert alone.model_spec(training=True).geometry_reader is not None  # the control


def test_a_teacher_is_neither_built_nor_asked_without_a_training() -> None:
    def refuse() -> Any:
        raise AssertionError("built")

    made = taught(Teacher(refuse, scale=refuse)).eval()
    asked = tiny_batch(made, tiny_scene("a", QUESTIONS[:1], family=FAMILY))
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
        made = taught(teacher)
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

    made = taught(Teacher(Released, scale=ReleasedScale))
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
