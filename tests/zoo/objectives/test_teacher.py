"""Objectives that learn from a teacher: in training only, and what their targets are."""

from __future__ import annotations

import warnings
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.collate import TrainingCollate
from datamodules.wording import Wording
from tests.zoo import asking
from tests.zoo.asking import QUESTIONS, RATES, scene
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
from zoo.geometry import CachedGeometry, SceneGeometry
from zoo.geometry.scale import ScaleSource
from zoo.objectives import decode
from zoo.objectives.geovr import PoseMLP, geovr_layers
from zoo.sequences.batch import Batch
from zoo.tasks.training_cost import BatchSizes, example_batch
from zoo.weights.frozen import check_frozen

FAMILY = "Qwen3-VL"
SMALL: dict[str, Any] = {"features": 8, "channels": [8, 8, 8, 8]}


def task(
    teacher: Teacher | None, token: Any = "training", width: int = 10, side: int = 32, **options: Any
) -> VideoQATask:
    torch.manual_seed(0)
    objectives = [
        TeacherPose(token),
        TeacherDepth(side=side, **SMALL),
        Distillation(width, indices=[2] if width == 10 else [1, 3]),
        MetricScale(token),
    ]
    backbone = asking.tiny_backbone(FAMILY, layers=3, key_value_heads=2)
    return VideoQATask(backbone=backbone, learning_rates=RATES, teacher=teacher, objectives=objectives, **options)


def training_batch(made: VideoQATask) -> Batch:
    parts = Wording(made.preprocessor), made.training_sequence_builder, replace(made.requirements, frames=True)
    shown = scene("a", QUESTIONS[:2], family=FAMILY), scene("b", QUESTIONS[1:2], seed=1, family=FAMILY)
    found = TrainingCollate(*parts)(list(shown))
    if made.teacher is not None:
        for each, targets in zip(found.scenes, made.teacher(found.scenes, 16), strict=True):
            each.teacher = targets
    return found


def begin(made: VideoQATask, **data: Any) -> None:
    """Begin a training on a data module with these settings."""
    trainer: Any = SimpleNamespace(state=SimpleNamespace(fn="fit"), datamodule=SimpleNamespace(**data))
    made._trainer = trainer
    made.configure_model()


def losses(made: VideoQATask) -> dict[str, Tensor]:
    return made.train().model(training_batch(made))


@pytest.mark.parametrize("name", ["dataset", "VGGT"])
def test_what_is_learned(name: str) -> None:
    """All parts get a gradient from each kind of teacher; a scene's targets are its own."""
    if name == "dataset":
        made = task(Teacher(DatasetGeometry))
    else:
        vggt = partial(TinyVGGT, embed_dim=32, depth=4, layers=[1, 3], heads=["camera", "depth"])
        made = task(Teacher(vggt, token_channels=0.5), width=32, side=28)
    found = losses(made)
    assert {"TeacherPose/rotation", "TeacherDepth", "Distillation", "MetricScale"} <= found.keys()
    assert not found["MetricScale"] if name == "VGGT" else found["MetricScale"] > 0  # VGGT knows no meters
    found["loss"].backward()
    for parameter, value in made.model.objectives.named_parameters():
        if not (name == "VGGT" and "MetricScale" in parameter):
            assert value.grad is not None and value.grad.any(), parameter
    assert not any("teacher" in each for each in made.state_dict())


def test_targets_are_of_the_first_frame_of_each_patch() -> None:
    teacher = Teacher(DatasetGeometry)
    made = task(teacher)
    (first, second) = training_batch(made).scenes
    assert first.teacher is not None and first.geometry is not None and second.teacher is not None
    torch.testing.assert_close(first.teacher.depth, first.geometry.depth[::2])
    torch.testing.assert_close(
        first.teacher.pose_enc[0], torch.tensor([0, 0, 0, 0, 0, 0, 1.0, *first.teacher.pose_enc[0, 7:]])
    )
    assert first.teacher.meters_per_unit == 1 and len(first.teacher.tokens) == 1
    for share, kept in ((0.4, slice(0, 4)), (-0.4, slice(-4, None))):  # of the first channels, and of the last
        (some,) = Teacher(DatasetGeometry, token_channels=share)([first], 16)
        assert some is not None and torch.equal(some.tokens[0], first.teacher.tokens[0][..., kept])
    # the control: those of another scene
    shuffled = training_batch(task(Teacher(DatasetGeometry, shuffled=True))).scenes
    assert shuffled[0].teacher is not None
    torch.testing.assert_close(shuffled[0].teacher.depth, second.teacher.depth)
    # nothing of its own, where no other scene has as many views
    shorter = copy(second)
    assert shorter.frames is not None and shorter.geometry is not None
    shorter.frames, shorter.geometry = shorter.frames[:4], shorter.geometry[:4]
    found = Teacher(DatasetGeometry, shuffled=True)([first, shorter, second], 16)
    assert found[1] is None and found[0] is not None and found[2] is not None
    torch.testing.assert_close(found[0].depth, second.teacher.depth)
    torch.testing.assert_close(found[2].depth, first.teacher.depth)
    made = task(Teacher(DatasetGeometry, shuffled=True))
    with pytest.raises(InputError, match="shuffled exchanges targets in a batch: give --data.batch_size 2"):
        begin(made, batch_size=1)
    begin(made, batch_size=2)


def test_the_layers_of_the_decoder_are_those_published_for_the_kind_of_teacher() -> None:
    da3 = partial(TinyDA3, [0, 1, 2, 3], embed_dim=32, depth=4, num_heads=2, features=8, heads=["camera", "depth"])
    objectives = [TeacherPose(), TeacherDepth(side=28, **SMALL), Distillation(32)]
    backbone = asking.tiny_backbone(FAMILY, layers=4, key_value_heads=2)
    made = VideoQATask(backbone=backbone, teacher=Teacher(da3, token_channels=-0.5), objectives=objectives)
    assert made.model.objectives["Distillation"].indices == (1, 2, 3, 4)  # of VGGT
    begin(made)
    assert made.model.objectives["Distillation"].indices == (2, 3, 3, 4)
    assert made.model.objectives.layers == (1, 2)
    losses(made)["loss"].backward()
    for parameter, value in made.model.objectives.named_parameters():
        assert value.grad is not None and value.grad.any(), parameter
    for objective, part in ((Distillation(8), "distill"), (TeacherDepth(**SMALL), "depth")):
        objective.bind(8, 28)
        objective.match_teacher("da3")
        assert objective.indices == geovr_layers("da3", 28)[part] != geovr_layers("vggt", 28)[part]
    chosen = Distillation(8, indices=[1, 3])
    chosen.bind(8, 28)
    chosen.match_teacher("da3")
    assert chosen.indices == (1, 3)  # the control


@pytest.mark.parametrize("seed", range(6))
def test_fields_of_view_start_where_they_learn(seed: int) -> None:
    """Camera tokens hardly differ at first: where one output is below 0, so are all."""
    torch.manual_seed(seed)
    head, tokens = PoseMLP(64), torch.randn(64) + 0.01 * torch.randn(8, 64)
    found = head(tokens)[:, 7:]
    assert (found > 0).all()
    found.sum().backward()
    last: Any = head.fc_fov[0]
    assert last.weight.grad.any(1).all()


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


def test_the_scale_is_that_of_the_datasets_cameras() -> None:
    """In another unit of the dataset, VGGT's lengths are as many meters more."""
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"], seed=0)
    made = task(None)
    scenes = training_batch(made).scenes[:1]
    teacher = Teacher(vggt, scale=DatasetPoses)
    (found,) = teacher(scenes, 16)
    assert scenes[0].geometry is not None
    scenes[0].geometry = scenes[0].geometry.scaled(3.0)
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


def test_the_tokens_are_in_the_prompts_of_a_training_alone() -> None:
    teacher = Teacher(DatasetGeometry)
    lengths = {}
    for token in ("training", "always", "none"):
        made = task(teacher, token)
        batch = training_batch(made)
        assert batch.sequences is not None
        lengths[token] = batch.sequences.lengths
        asked = asking.batch(made, scene("a", QUESTIONS[:1], family=FAMILY))
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
    assert not unofficial_parts(task(teacher, "training").model) and unofficial_parts(task(teacher, "always").model)


def test_the_first_view_has_a_token_of_its_own() -> None:
    made = task(Teacher(DatasetGeometry))
    losses(made)["TeacherPose"].backward()
    token = made.model.objectives.all_objectives["TeacherPose"].token
    assert token is not None and token.shape == (2, 64) and token.grad is not None
    assert token.grad.any(1).all() and not torch.equal(*token.grad)


def test_the_scale_is_read_behind_the_last_view() -> None:
    made = task(Teacher(DatasetGeometry)).train()
    batch = training_batch(made)
    assert batch.sequences is not None
    scenes = made.model.encode_scenes(batch)
    inputs = made.model.decoder_inputs(scenes, batch.sequences)
    decoded = decode(made.model.backbone, made.model.objectives.layers, inputs, scenes, batch.sequences)
    steps, per_view = scenes[0].visual.tokens.shape[:2]
    (_, states), *_ = decoded.visual_states(inputs["inputs_embeds"])
    token = made.model.objectives.all_objectives["MetricScale"].token
    assert token is not None and states.shape[1] == steps * per_view + 1 and torch.equal(states[0, -1], token)
    (_, views), *_ = decoded.views_of(inputs["inputs_embeds"])
    assert torch.equal(views[0].flatten(0, 1), states[0, :-1])
    stills = copy(batch.scenes[0])
    stills.kind = "image"
    assert made.model.objectives.end_token(stills, training=True) is None


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
    scenes[0].frames = scenes[0].frames.flip(-1)  # the control: other frames are computed
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
    assert taught.geometry_reader(training=True) is None and taught.geometry_reader(training=False) is not None
    assert alone.geometry_reader(training=True) is not None  # the control


@pytest.mark.parametrize("kind", ["l1", "silog"])
def test_unknown_depth_has_no_error_and_no_gradient(kind: str) -> None:
    made = task(Teacher(DatasetGeometry))
    batch = training_batch(made)
    made.model.objectives["TeacherDepth"].kind = kind
    for shown in batch.scenes:
        assert shown.teacher is not None and shown.teacher.depth is not None
        shown.teacher = shown.teacher._replace(depth=torch.zeros_like(shown.teacher.depth))
        shown.teacher.depth[:, :16] = 2.0
    found = made.train().model(batch)["TeacherDepth"]
    found.backward()
    assert found > 0.1
    gradients = {n: p.grad for n, p in made.model.objectives.named_parameters() if n.startswith("TeacherDepth")}
    assert all(grad is not None and grad.isfinite().all() for grad in gradients.values())
    for shown in batch.scenes:
        shown.teacher.depth[:] = 0.0  # type: ignore[union-attr, index]
    assert made.model(batch)["TeacherDepth"] < 0.01


def test_a_teacher_is_neither_built_nor_asked_without_a_training() -> None:
    def refuse() -> Any:
        raise AssertionError("built")

    made = task(Teacher(refuse, scale=refuse)).eval()
    asked = asking.batch(made, scene("a", QUESTIONS[:1], family=FAMILY))
    made.can_answer = True
    assert made.predict_batch(asked)[0]["error"] is None and not made.requirements.frames
    with pytest.raises(AssertionError, match="built"):  # the control
        training_batch(made)


def test_a_training_requires_what_the_teacher_does() -> None:
    vggt = partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"])
    for teacher, cameras, depth in (
        (Teacher(DatasetGeometry), True, True),
        (Teacher(vggt), False, False),
        (Teacher(vggt, scale=DatasetPoses), True, False),
    ):
        made = task(teacher)
        needs = made.training_requirements
        assert (needs.frames, needs.cameras, needs.depth) == (True, cameras, depth)
        assert not made.requirements.frames and not made.requirements.cameras


def test_what_does_not_fit_is_refused() -> None:
    teacher = Teacher(DatasetGeometry)
    made = task(teacher)
    made.model.objectives["Distillation"].teacher_width = 32
    with pytest.raises(InputError, match="teacher_width 32, and the teacher's tokens 10 channels"):
        losses(made)
    with pytest.raises(InputError, match=r"reads hidden states \[4\] of a decoder with 3"):
        task(teacher).model.objectives["Distillation"]._bind_indices([4], 3)
    with pytest.raises(InputError, match="TeacherPose and MetricScale show a training other tokens than a test"):
        task(teacher, algorithm=GRPO())
    with pytest.raises(InputError, match="MaskedViews show a training other tokens"):
        VideoQATask(objectives=[MaskedViews()], algorithm=GRPO())
    # what no teacher gives
    objectives, vggt = made.model.objectives, partial(TinyVGGT, embed_dim=32, depth=2, heads=["camera", "depth"])
    objectives.check_teacher(teacher.given)
    objectives.check_teacher(Teacher(vggt, scale=DatasetPoses).given)
    for given, message in (
        (None, "TeacherPose learns the pose_enc of a teacher: name one"),
        (Teacher(vggt).given, "MetricScale learns the meters_per_unit .* another --model.teacher.scale"),
        (Teacher(partial(DatasetGeometry, depth=False)).given, "TeacherDepth learns the depth .*teacher.encoder"),
    ):
        with pytest.raises(InputError, match=message):
            objectives.check_teacher(given)


def test_the_plan_of_a_training_counts_its_tokens() -> None:
    sequences = example_batch(task(None).model, BatchSizes(6, height=64, width=96)).sequences
    assert sequences is not None and sequences.visual_counts == [3 * (6 + 1) + 1]
