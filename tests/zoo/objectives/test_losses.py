"""Losses and errors of objectives against slow and obvious references; depth is learned where states hold it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo.asking import QUESTIONS, batch, build, scene
from zoo import CameraPrediction, CameraTokenFusion, DepthPrediction, TinyVGGT
from zoo.cameras.poses import rigid_matrix
from zoo.cameras.scene_geometry import PatchCameras
from zoo.objectives import Decoded
from zoo.objectives.base import AVERAGES, AverageRule, MicroBatchAverage
from zoo.objectives.camera_prediction import IDENTITY

WIDTH = 16


class Shown(Decoded):
    """Scenes with hidden states that are given, in some sequences each, of which the last has two answers."""

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
    """The objective with a head that starts at random, in place of zero."""
    torch.manual_seed(0)
    objective.bind(WIDTH, 2)
    for parameter in objective.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    return objective


# ---- cameras ---------------------------------------------------------------------------------------------------


def averaged(losses: dict[int, list[list[float]]], shown: Shown) -> float:
    """Losses by scene, sequence and view or token with a target, averaged in words."""
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
    """View by view, in words: two columns made orthonormal, the angle from the trace, the distance of two centers."""
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


@torch.no_grad()
def test_without_a_token_the_last_2d_token_is_read_and_not_one_of_the_fusion() -> None:
    parts: dict[str, Any] = {"fusion": CameraTokenFusion, "geometry": lambda: TinyVGGT(embed_dim=32, depth=2)}
    task = build("plain", objectives=[CameraPrediction(token=False)], **parts)
    objective, seen = task.model.objectives["CameraPrediction"], []
    objective.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[union-attr]
    decoded: list[Tensor] = []
    forward = Decoded.views

    def views(self: Decoded, layer: int) -> Iterator[Any]:
        for shown, states in forward(self, layer):
            decoded.append(states)
            yield shown, states

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoded, "views", views)
        task.train().losses(batch(task, scene("a", QUESTIONS[:1]), training=True))
    assert decoded[0].shape[2] == 7  # 2 x 3 tokens, and the fusion's
    assert torch.equal(seen[0], decoded[0][:, :, 5]) and not torch.equal(seen[0], decoded[0][:, :, 6])


# ---- depth -----------------------------------------------------------------------------------------------------


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
    """New depth in each step, so that none is learned by heart."""
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
