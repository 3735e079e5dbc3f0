"""Cameras and depth as objectives predict them: losses and errors against slow references, targets, learning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from datamodules import Augmentation, OtherCameras, RandomCameraErrors, RandomFocalLength, VideoQADataModule
from tests.tiny import QUESTIONS, VGGT, tiny_batch, tiny_model, tiny_scene
from zoo import CameraPrediction, CameraTokenFusion, DatasetPoses, DepthPrediction, PosePrediction, TinyVGGT
from zoo.cameras import invert_se3, pose_distance
from zoo.cameras.poses import rigid_matrix
from zoo.cameras.scene_geometry import PatchCameras, merge_cameras
from zoo.errors import InputError
from zoo.geometry import SceneGeometry
from zoo.geometry.base import encoder_frames
from zoo.objectives import Decoded
from zoo.objectives.base import AVERAGES, AverageRule, MicroBatchAverage
from zoo.objectives.camera_prediction import IDENTITY
from zoo.scene_encoding import token_depth
from zoo.sequences.batch import Batch
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks.video_qa import VideoQATask, predicted_cameras

WIDTH = 16


class Shown(Decoded):
    """Scenes with given hidden states in some sequences each; the last sequence has two answers."""

    def __init__(self, *scenes: tuple[Any, Tensor], average: AverageRule = "questions") -> None:
        self.scenes_and_states, self.last_hidden_state = scenes, scenes[0][1][0]
        self.scenes, self.average = [scene for scene, _ in scenes], AVERAGES[average]
        shown = [[number] for number, (_, states) in enumerate(scenes) for _ in states]
        counts = [count for _, states in scenes for count in [1] * (len(states) - 1) + [2]]
        self.sequences: Any = SimpleNamespace(scene_index=shown, num_answers=counts)

    def views(self, layer: int) -> Iterator[tuple[Any, Tensor]]:
        yield from self.scenes_and_states


def cameras(*known: bool) -> PatchCameras:
    count = len(known)
    skew = torch.randn(count, 3, 3)
    poses = rigid_matrix(torch.linalg.matrix_exp(skew - skew.mT), torch.randn(count, 3))
    return PatchCameras(poses, torch.eye(3).repeat(count, 1, 1), torch.tensor(known))


def with_head(objective: Any) -> Any:
    """Give the objective a random head in place of one that starts at zero."""
    torch.manual_seed(0)
    objective.bind(WIDTH, 2)
    for parameter in objective.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return objective


def averaged(losses: dict[int, list[list[float]]], shown: Shown) -> float:
    """Average losses by scene, sequence, and view or token with a target: the slow reference of `average`."""
    if isinstance(shown.average, MicroBatchAverage):  # a view counts once, in however many sequences it is
        once = [sum(each) / len(each) for rows in losses.values() for each in zip(*rows, strict=True)]
        return sum(once) / len(once)
    counts = iter(shown.sequences.num_answers)
    total = 0.0
    for number, (_, states) in enumerate(shown.scenes_and_states):
        for row in range(len(states)):
            of_question = losses[number][row] if number in losses else []
            total += next(counts) * (sum(of_question) / len(of_question) if of_question else 0.0)
    return total / sum(shown.sequences.num_answers)


def camera_loss(objective: CameraPrediction, shown: Shown) -> dict[str, float]:
    """Compute the loss view by view: orthonormal columns, the angle from the trace, the distance of centers."""
    losses: dict[str, dict[str, dict[int, list[list[float]]]]] = {
        kind: {name: {} for name in ("reference", "neighbor")} for kind in ("rotation", "center")
    }
    for scene_number, (given, states) in enumerate(shown.views(0)):
        poses, known = given.target_cameras.world_to_camera, given.target_cameras.has_camera.tolist()
        for of in (each for named in losses.values() for each in named.values()):
            of[scene_number] = [[] for _ in states]
        for row_number, row in enumerate(states):
            for i, view in enumerate(row):
                numbers = objective.head(view[-1]) + torch.tensor(IDENTITY * 2)
                for number, (name, anchor) in enumerate({"reference": known.index(True), "neighbor": i - 1}.items()):
                    if anchor < 0 or anchor == i or not (known[i] and known[anchor]):
                        continue
                    a, b, center = numbers[9 * number : 9 * number + 9].split(3)
                    x = a / a.norm()
                    y = b - (x @ b) * x
                    y = y / y.norm()
                    predicted = torch.stack((x, y, torch.linalg.cross(x, y)), 1)
                    true = poses[i] @ poses[anchor].inverse()
                    cosine = ((predicted @ true[:3, :3].T).trace() - 1) / 2
                    losses["rotation"][name][scene_number][row_number].append(math.acos(float(cosine)))
                    distance = float((center - true.inverse()[:3, 3]).norm())
                    losses["center"][name][scene_number][row_number].append(distance)
    rotation, center = (sum(averaged(of, shown) for of in named.values()) for named in losses.values())
    return {"rotation": rotation, "center": objective.center_weight * center}


@torch.no_grad()
def test_the_loss_on_cameras_is_that_of_a_slow_reference() -> None:
    objective = with_head(CameraPrediction(center_weight=0.3))
    of_a, of_b = cameras(False, True, True, True), cameras(True, False, True)
    given = (
        (SimpleNamespace(target_cameras=of_a), torch.randn(2, 4, 3, WIDTH)),
        (SimpleNamespace(target_cameras=of_b), torch.randn(1, 3, 5, WIDTH)),
    )
    rules: list[AverageRule] = ["micro_batch_tokens", "questions"]
    found = []
    for rule in rules:
        shown = Shown(*given, average=rule)
        expected = pytest.approx(camera_loss(objective, shown), rel=1e-4)
        found.append({name: float(term) for name, term in objective(shown).items()})
        assert found[-1] == expected
    # the controls: the other rule, another weight, and the neighbors' poses in place of those of the reference view
    assert found[0]["rotation"] != pytest.approx(found[1]["rotation"], rel=1e-2)
    objective.center_weight = 1.0
    assert float(objective(shown)["center"]) != expected.expected["center"]
    objective.center_weight, objective.anchors = 0.3, ("neighbor", "reference")
    assert {name: float(term) for name, term in objective(shown).items()} != expected


def of_depth(depth: Tensor, states: Tensor) -> tuple[Any, Tensor]:
    return SimpleNamespace(target_depth=depth, is_target_in_camera_unit=True), states


@torch.no_grad()
def test_the_loss_and_errors_on_depth_are_those_of_a_slow_reference() -> None:
    objective = with_head(DepthPrediction())
    depths = [torch.rand(3, 4) * 4 + 0.5, torch.rand(2, 6) * 4 + 0.5, torch.zeros(1, 2)]
    depths[0][1, 2] = depths[1][0, :3] = 0  # unknown
    states = [torch.randn(1, *depth.shape, WIDTH) for depth in depths]
    off: dict[int, list[list[float]]] = {}
    relative, still = [], []
    for number, (depth, given) in enumerate(zip(depths[:2], states, strict=False)):
        known = [(i, j) for i in range(len(depth)) for j in range(depth.shape[1]) if depth[i, j] > 0]
        predicted = {place: float(objective.head(given[0][place])) for place in known}
        off[number] = [[abs(predicted[place] - math.log(depth[place])) for place in known]]
        errors = [abs(math.exp(predicted[place]) - float(depth[place])) / float(depth[place]) for place in known]
        relative.append(sum(errors) / len(errors))
        median = sorted(float(depth[place]) for place in known)[(len(known) - 1) // 2]
        still.append(sum(abs(median - float(depth[place])) / float(depth[place]) for place in known) / len(known))
    rules: list[AverageRule] = ["micro_batch_tokens", "questions"]
    for rule in rules:
        shown = Shown(*map(of_depth, depths, states), average=rule)
        assert float(objective(shown)["log_depth"]) == pytest.approx(averaged(off, shown), rel=1e-4)
    for number in range(2):
        errors = objective.errors(Shown(of_depth(depths[number], states[number])))
        assert float(errors["depth_relative"]) == pytest.approx(relative[number], rel=1e-4)
        assert float(errors["unlearned/depth_relative"]) == pytest.approx(still[number], rel=1e-4)
    assert objective.errors(Shown(of_depth(depths[2], states[2]))) == {}


@torch.no_grad()
def test_the_aligned_error_does_not_know_the_scale_of_a_scene_and_the_other_does() -> None:
    objective, depth, states = with_head(DepthPrediction()), torch.rand(3, 5) + 1, torch.randn(1, 3, 5, WIDTH)
    near, far = (objective.errors(Shown(of_depth(scale * depth, states))) for scale in (1, 7))
    for name in ("aligned_depth_relative", "unlearned/depth_relative", "unlearned/aligned_depth_relative"):
        assert float(near[name]) == pytest.approx(float(far[name]), rel=1e-4)
    assert float(near["depth_relative"]) != pytest.approx(float(far["depth_relative"]), rel=0.1)


@pytest.mark.parametrize("shuffled", [False, True])
def test_depth_is_learned_from_states_that_hold_it_and_shuffled_depth_is_not(shuffled: bool) -> None:
    """Each step draws new depth, so that none is learned by heart."""
    torch.manual_seed(0)
    objective, mixing = DepthPrediction(), torch.randn(2, WIDTH)  # of log depth and a one: the head normalizes
    objective.bind(WIDTH, 2)

    def draw(count: int) -> Shown:
        depth = torch.rand(1, count) * 4 + 0.5
        seen = depth[:, torch.randperm(count)] if shuffled else depth
        return Shown(of_depth(depth, torch.stack((seen.log(), torch.ones_like(seen)), -1)[None] @ mixing))

    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        objective(draw(64))["log_depth"].backward()
        optimizer.step()
    with torch.no_grad():
        errors = {name: float(value) for name, value in objective.errors(draw(512)).items()}
    ratio = errors["depth_relative"] / errors["unlearned/depth_relative"]
    assert ratio > 0.7 if shuffled else ratio < 0.3, errors


# ---- targets ---------------------------------------------------------------------------------------------------------


SCENES = tiny_scene("a", QUESTIONS[:2]), tiny_scene("b", QUESTIONS[:1], steps=2, seed=1)
UP_TO_ROUNDING = partial(torch.allclose, atol=1e-5)


def geometry_of(steps: int, number: int = 0) -> SceneGeometry:
    geometry = tiny_scene("a", steps=steps, seed=number).geometry
    assert geometry is not None
    return geometry


def test_true_poses_are_relative_to_a_camera_that_is_known() -> None:
    cameras = merge_cameras(geometry_of(5))._replace(has_camera=torch.tensor([False, True, True, False, True]))
    poses, center = cameras.world_to_camera, invert_se3(cameras.world_to_camera)[:, :3, 3]
    first, step = (CameraPrediction().true_poses(cameras, anchor) for anchor in ("reference", "neighbor"))
    middle = CameraPrediction(reference="middle").true_poses(cameras, "reference")
    assert middle.known.tolist() == [False, False, False, False, True]  # a causal decoder sees none ahead
    assert first.known.tolist() == [False, False, True, False, True]
    assert step.known.tolist() == [False, False, True, False, False]
    # slow and obvious: the center of camera 4 in the frame of camera 1, and the turn between both
    found = first.poses.double()
    assert UP_TO_ROUNDING(invert_se3(found)[4, :3, 3], poses[1, :3, :3] @ (center[4] - center[1]))
    assert UP_TO_ROUNDING(found[4, :3, :3], poses[4, :3, :3] @ poses[1, :3, :3].mT)
    found = step.poses.double()
    assert UP_TO_ROUNDING(invert_se3(found)[2, :3, 3], poses[1, :3, :3] @ (center[2] - center[1]))


def test_true_poses_know_neither_the_world_nor_with_a_scale_its_size() -> None:
    cameras = merge_cameras(geometry_of(5))
    poses = cameras.world_to_camera
    moved = cameras._replace(world_to_camera=poses @ rigid_matrix(poses[0, :3, :3], poses[1, :3, 3]))
    larger = cameras._replace(world_to_camera=rigid_matrix(poses[:, :3, :3], 7 * poses[:, :3, 3]))
    for anchor in ("reference", "neighbor"):
        metric, scaled = (CameraPrediction(scale=scale).true_poses for scale in ("none", "mean"))
        assert UP_TO_ROUNDING(metric(moved, anchor).poses, metric(cameras, anchor).poses)
        assert UP_TO_ROUNDING(scaled(larger, anchor).poses, scaled(cameras, anchor).poses)
        assert not torch.allclose(metric(larger, anchor).poses, metric(cameras, anchor).poses, atol=0.1)


def test_depth_is_the_median_over_the_merged_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(4, 56, 84, generator=generator)
    depth = depth * (depth > 0.3)
    depth[2:, :28, 28:56] = 0
    found = token_depth(SceneGeometry(depth=depth), 2)
    assert found is not None and token_depth(SceneGeometry(), 2) is None
    for step, row, column in ((0, 1, 2), (1, 1, 0), (1, 0, 1)):
        pixels = depth[2 * step : 2 * step + 2, 28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
        expected = pixels[pixels > 0].median() if (pixels > 0).any() else 0
        assert found[step, 3 * row + column] == expected


@torch.no_grad()
def test_without_a_token_the_last_2d_token_is_read_and_not_one_of_the_fusion() -> None:
    task = tiny_model("plain", objectives=[CameraPrediction(token=False)], fusion=CameraTokenFusion, **VGGT)
    objective: Any = task.model.objectives["CameraPrediction"]
    objective.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    decoded: list[Tensor] = []
    seen: list[Tensor] = []
    forward = Decoded.views

    def views(self: Decoded, layer: int) -> Iterator[Any]:
        for shown, states in forward(self, layer):
            decoded.append(states)
            yield shown, states

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoded, "views", views)
        task.train().losses(tiny_batch(task, tiny_scene("a", QUESTIONS[:1]), training=True))
    assert decoded[0].shape[2] == 7  # 2 x 3 tokens, and the fusion's
    assert torch.equal(seen[0], decoded[0][:, :, 5]) and not torch.equal(seen[0], decoded[0][:, :, 6])


def with_depth() -> TinyVGGT:
    return TinyVGGT(embed_dim=32, depth=2, heads=("camera", "depth"))


def test_pseudo_labels_are_the_encoders_in_training_alone() -> None:
    objectives = [CameraPrediction(), DepthPrediction()]
    task = tiny_model("plain", geometry=with_depth, camera_source="predicted", objectives=objectives)
    encoder, (_, shown), needs = task.model.geometry, SCENES, task.model_spec()
    assert (
        needs.requires_frames
        and needs.targets == ("cameras", "depth")
        and not needs.required_targets
        and encoder is not None
    )
    truth = shown.geometry
    assert truth is not None and shown.frames is not None
    frames = encoder_frames(shown.frames, task.model.backbone.patch_size, encoder.patch_size)
    (geometry,) = encoder([frames], [truth], tokens=False)
    for training, expected in ((True, geometry), (False, truth)):
        (encoded,) = task.train(training).model.encode_scenes(tiny_batch(task, shown))
        cameras, depth = encoded.target_cameras, encoded.target_depth
        assert cameras is not None and depth is not None
        assert torch.equal(cameras.world_to_camera, merge_cameras(expected).world_to_camera)
        assert torch.equal(depth, token_depth(expected, 2))  # type: ignore[arg-type]
    errors = task.eval().predict_batch(tiny_batch(task, shown))[0]["objectives"]  # against the dataset's
    assert {"CameraPrediction/center", "DepthPrediction/depth_relative"} <= errors.keys()


def test_errors_are_against_the_dataset_whatever_cameras_the_tokens_have() -> None:
    parts = {"geometry": with_depth, "camera_source": "predicted", "objectives": [CameraPrediction()]}
    unlearned = []
    for encoding in ({}, {"camera_encoding": "PRoPE, ChannelRange"}):
        task = tiny_model("plain", **parts, **encoding)
        (errors,) = (record["objectives"] for record in task.predict_batch(tiny_batch(task, SCENES[1])))
        unlearned.append(errors["CameraPrediction/unlearned/center"])
    assert unlearned[0] == unlearned[1]


@pytest.mark.parametrize("encoding", [{}, {"camera_encoding": "PRoPE, ChannelRange"}], ids=["objective", "PRoPE"])
def test_auto_learns_the_datasets_cameras_and_predicted_ones_of_scenes_without(encoding: dict[str, Any]) -> None:
    task = tiny_model(
        "plain", **VGGT, **encoding, camera_source="auto", objectives=[CameraPrediction(), DepthPrediction()]
    )
    assert task.model_spec().required_targets == ("depth",) and task.model_spec().requires_frames
    shown, encoder = SCENES[1], task.model.geometry
    assert shown.geometry is not None and shown.frames is not None and encoder is not None
    frames = encoder_frames(shown.frames, task.model.backbone.patch_size, encoder.patch_size)
    (geometry,) = encoder([frames], [None], tokens=False)
    only_depth = SceneGeometry(depth=shown.geometry.depth)
    for given, expected in ((shown.geometry, shown.geometry), (only_depth, geometry)):
        (encoded,) = task.train().model.encode_scenes(tiny_batch(task, replace(shown, geometry=given)))
        cameras, depth = encoded.target_cameras, encoded.target_depth
        assert cameras is not None and depth is not None
        assert torch.equal(cameras.world_to_camera, merge_cameras(expected).world_to_camera)
        assert torch.equal(depth, token_depth(given, 2))  # type: ignore[arg-type]
    depth_alone = tiny_model("plain", **VGGT, camera_source="auto", objectives=[DepthPrediction()])
    assert depth_alone.model.geometry is None and depth_alone.model_spec().arbitrary_unit is None


@pytest.mark.parametrize(
    ("objectives", "unit"),
    [
        ([CameraPrediction()], "TinyVGGT"),
        ([DepthPrediction()], "TinyVGGT"),
        ([CameraPrediction(scale="mean")], None),
    ],
)
def test_lengths_in_a_unit_of_each_scenes_own_are_said_to_be(objectives: list[Any], unit: str | None) -> None:
    task = tiny_model("plain", geometry=with_depth, camera_source="predicted", objectives=objectives)
    assert task.model_spec().arbitrary_unit == unit
    aligned = partial(TinyVGGT, embed_dim=32, depth=2, scale_from=DatasetPoses())
    needs = tiny_model(geometry=aligned, camera_source="predicted", objectives=[CameraPrediction()]).model_spec()
    assert needs.required_targets == ("cameras",) and needs.arbitrary_unit is None  # the control


def test_still_images_have_a_camera_each() -> None:
    task = tiny_model("plain", objectives=[CameraPrediction(), DepthPrediction()])
    images = replace(SCENES[1], kind="image", is_one_medium=True)
    losses = task.train().losses(tiny_batch(task, images, training=True))
    assert losses["CameraPrediction"] > 0 < losses["DepthPrediction"]
    errors = task.eval().predict_batch(tiny_batch(task, images))[0]["objectives"]
    geometry = SCENES[1].geometry
    assert geometry is not None
    poses = CameraPrediction().true_poses(merge_cameras(geometry), "reference").poses
    distance = invert_se3(poses)[:, :3, 3].norm(dim=-1)  # of a camera that never moves
    assert errors["CameraPrediction/unlearned/center"] == pytest.approx(float(distance[1]), rel=1e-4)


def test_predicted_cameras_are_those_whose_errors_are_reported() -> None:
    task = tiny_model("plain", objectives=[CameraPrediction()])
    asked = tiny_batch(task, *SCENES)
    found = predicted_cameras(task.model, asked)
    assert found.keys() == {"a", "b"} and not predicted_cameras(tiny_model("plain").model, asked)
    cameras, predicted = found["a"]
    angle, distance = (each[1:].mean() for each in pose_distance(predicted, cameras.world_to_camera))
    errors = task.predict_batch(asked)[0]["objectives"]
    assert errors["CameraPrediction/rotation_deg"] == pytest.approx(float(angle.rad2deg()), rel=1e-4)
    assert errors["CameraPrediction/center"] == pytest.approx(float(distance), rel=1e-4)
    still = float(invert_se3(cameras.world_to_camera)[1:, :3, 3].norm(dim=-1).mean())
    assert errors["CameraPrediction/unlearned/center"] == pytest.approx(still, rel=1e-4)


# ---- cameras that are told wrongly: the true ones are learned and compared ------------------------------------------


def told_wrongly(scene: LoadedScene) -> LoadedScene:
    return RandomCameraErrors(degrees=40.0, translation=0.5, missing=0.7)(replace(scene, draw=3))


@pytest.mark.parametrize(
    "parts",
    [
        {"objectives": [CameraPrediction()]},
        {"objectives": [PosePrediction(dim=16, trunk_depth=1)]},
        {"objectives": [CameraPrediction()], "camera_source": "predicted", **VGGT},
        {"objectives": [CameraPrediction()], "camera_source": "auto", **VGGT},
    ],
    ids=["cameras", "Cambrian-P's poses", "pseudo-labels", "pseudo-labels where there are none"],
)
def test_a_model_that_reads_frames_alone_learns_the_same_whatever_cameras_are_told(parts: dict[str, Any]) -> None:
    task = tiny_model("plain", **parts).train()
    name = type(parts["objectives"][0]).__name__

    def loss(*scenes: LoadedScene) -> float:
        torch.manual_seed(0)
        return task.losses(tiny_batch(task, *scenes, training=True))[name].item()

    wrong = [told_wrongly(scene) for scene in SCENES]
    assert not any(
        a.geometry.world_to_camera.equal(b.geometry.world_to_camera) for a, b in zip(wrong, SCENES, strict=True)
    )
    assert loss(*wrong) == loss(*SCENES) > 0
    if parts.get("camera_source") != "predicted":  # the control: the wrong cameras as targets
        assert loss(*(replace(scene, true_geometry=None) for scene in wrong)) != pytest.approx(loss(*SCENES), rel=1e-3)


def test_pseudo_labels_from_wrong_cameras_are_refused_before_a_training() -> None:
    aligned = partial(TinyVGGT, embed_dim=32, depth=2, scale_from=DatasetPoses())
    parts: dict[str, Any] = {"geometry": aligned, "camera_source": "predicted"}
    predicted = tiny_model("plain", objectives=[CameraPrediction()], **parts)

    def set_up(task: VideoQATask, augmentation: Augmentation | None) -> None:
        data = VideoQADataModule(augmentation=augmentation)
        data.trainer = cast(Any, SimpleNamespace(lightning_module=task))
        data.setup("fit")

    with pytest.raises(InputError, match="^--data.augmentation RandomCameraErrors: .*--model.camera_source dataset"):
        set_up(predicted, RandomCameraErrors(5.0))
    # the controls: true cameras, nothing learned from the predictions, and labels from frames alone
    set_up(predicted, None)
    set_up(predicted, RandomFocalLength())
    set_up(tiny_model("plain", camera_encoding="PRoPE, ChannelRange", **parts), RandomCameraErrors(5.0))
    alone = tiny_model("plain", objectives=[CameraPrediction()], camera_source="predicted", **VGGT)
    set_up(alone, RandomCameraErrors(5.0))


def test_a_model_that_reads_wrong_cameras_is_compared_with_the_true_ones() -> None:
    task = tiny_model("plain", objectives=[CameraPrediction()], camera_encoding="PRoPE, ChannelRange")
    shown, wrong = SCENES[0], OtherCameras()(SCENES[0], lambda: SCENES[1])

    def errors(scene: LoadedScene) -> dict[str, float]:
        return task.predict_batch(tiny_batch(task, scene))[0]["objectives"]

    found, expected = errors(wrong), errors(shown)
    still = "CameraPrediction/unlearned/center"
    assert found[still] == expected[still]  # of a camera that never moves, in the true cameras
    assert found["CameraPrediction/center"] != expected["CameraPrediction/center"]  # the model reads the others
    assert errors(replace(wrong, true_geometry=None))[still] != expected[still]  # the control


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_small_model_learns_cameras_that_its_frames_show(shuffled: bool) -> None:
    """The brightness of a frame is its place along an axis; new frames in each step."""
    torch.manual_seed(0)
    task = tiny_model("plain", objectives=[CameraPrediction(anchors=["reference"])]).train()
    example = tiny_scene("a", QUESTIONS[:1], steps=4)

    def draw() -> Batch:
        place = torch.rand(4)
        frames = (255 * place).to(torch.uint8).repeat_interleave(2)[:, None, None, None].repeat(1, 3, 56, 84)
        poses = torch.eye(4).repeat(4, 1, 1)
        poses[:, 0, 3] = -3 * (place[torch.randperm(4)] if shuffled else place)
        geometry = SceneGeometry(
            world_to_camera=poses.repeat_interleave(2, 0), K_normalized=torch.eye(3).repeat(8, 1, 1)
        )
        return tiny_batch(task, replace(example, frames=frames, geometry=geometry), training=task.training)

    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(500):
        optimizer.zero_grad()
        task.loss(draw()).backward()
        optimizer.step()
    task.eval()
    found = [task.predict_batch(draw())[0]["objectives"] for _ in range(10)]
    learned, unlearned = (sum(each[f"CameraPrediction/{null}center"] for each in found) for null in ("", "unlearned/"))
    assert learned > 0.8 * unlearned if shuffled else learned < 0.65 * unlearned, (learned, unlearned)
