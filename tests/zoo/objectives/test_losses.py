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
from zoo.cameras.patch_cameras import PatchCameras
from zoo.cameras.poses import rigid_matrix
from zoo.objectives import Decoded
from zoo.objectives.camera_prediction import IDENTITY
from zoo.scene_encoding.encoded_scene import SceneTargets

WIDTH = 16


class Shown(Decoded):
    """Scenes with hidden states that are given."""

    def __init__(self, *scenes: tuple[Any, Tensor]) -> None:
        self.scenes_and_states, self.last_hidden_state = scenes, scenes[0][1][0]

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


def camera_loss(objective: CameraPrediction, shown: Shown) -> dict[str, float]:
    """View by view, in words: two columns made orthonormal, the angle from the trace, the distance of two centers."""
    angles: dict[tuple[str, int, int], list[float]] = {}
    distances: dict[tuple[str, int, int], list[float]] = {}
    for scene_number, (given, states) in enumerate(shown.views(0)):
        poses, known = given.targets.cameras.world_to_camera, given.targets.cameras.has_camera.tolist()
        for row in states:
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
                    place = name, scene_number, i  # a view counts once, in however many sequences it is
                    angles.setdefault(place, []).append(math.acos(float(cosine)))
                    distances.setdefault(place, []).append(float((center - true.inverse()[:3, 3]).norm()))
    means = []
    for of in (angles, distances):
        views = [[sum(v) / len(v) for key, v in of.items() if key[0] == name] for name in ("reference", "neighbor")]
        means.append(sum(sum(each) / len(each) for each in views))
    return {"rotation": means[0], "center": objective.center_weight * means[1]}


@torch.no_grad()
def test_the_loss_on_cameras_is_that_of_a_slow_reference() -> None:
    objective = with_head(CameraPrediction(center_weight=0.3))
    of_a, of_b = cameras(False, True, True, True), cameras(True, False, True)
    shown = Shown(
        (SimpleNamespace(targets=SceneTargets(of_a)), torch.randn(2, 4, 3, WIDTH)),
        (SimpleNamespace(targets=SceneTargets(of_b)), torch.randn(1, 3, 5, WIDTH)),
    )
    expected = pytest.approx(camera_loss(objective, shown), rel=1e-4)
    assert {name: float(term) for name, term in objective(shown).items()} == expected
    # the controls: another weight, and the neighbors' poses in place of those of the reference view
    objective.center_weight = 1.0
    assert float(objective(shown)["center"]) != expected.expected["center"]
    objective.center_weight, objective.anchors = 0.3, ("neighbor", "reference")
    assert {name: float(term) for name, term in objective(shown).items()} != expected


@torch.no_grad()
def test_without_a_token_the_last_2d_token_is_read_and_not_one_of_the_fusion() -> None:
    parts: dict[str, Any] = {"fusion": CameraTokenFusion, "geometry": lambda: TinyVGGT(embed_dim=32, depth=2)}
    task = build("plain", objectives=[CameraPrediction(token=False)], **parts)
    objective, seen = task.model.objectives.all_objectives["CameraPrediction"], []
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
    return SimpleNamespace(targets=SceneTargets(depth=depth)), states


@torch.no_grad()
def test_the_loss_and_errors_on_depth_are_those_of_a_slow_reference() -> None:
    objective = with_head(DepthPrediction())
    depths = [torch.rand(3, 4) * 4 + 0.5, torch.rand(2, 6) * 4 + 0.5, torch.zeros(1, 2)]
    depths[0][1, 2] = depths[1][0, :3] = 0  # unknown
    states = [torch.randn(1, *depth.shape, WIDTH) for depth in depths]
    off, relative, still = [], [], []
    for depth, given in zip(depths[:2], states, strict=False):
        known = [(i, j) for i in range(len(depth)) for j in range(depth.shape[1]) if depth[i, j] > 0]
        predicted = {place: float(objective.head(given[0][place])) for place in known}
        off += [abs(predicted[place] - math.log(depth[place])) for place in known]
        errors = [abs(math.exp(predicted[place]) - float(depth[place])) / float(depth[place]) for place in known]
        relative.append(sum(errors) / len(errors))
        median = sorted(float(depth[place]) for place in known)[(len(known) - 1) // 2]
        still.append(sum(abs(median - float(depth[place])) / float(depth[place]) for place in known) / len(known))
    shown = Shown(*map(of_depth, depths, states))
    assert float(objective(shown)["log_depth"]) == pytest.approx(sum(off) / len(off), rel=1e-4)
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
