"""Measures the declared symmetries of every view mixer, in both directions, in float64."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from docs.symmetries import VIEW_MIXERS
from tests.zoo.encodings.test_view_attention import EXACT, GRID, MOVES, WIDTH, permuted, random_tokens, scene
from zoo.cameras import Cameras
from zoo.encodings.base import CameraModule, ViewMixer, ViewSymmetries
from zoo.encodings.testing import random_cameras


def trained(name: str) -> ViewMixer:
    torch.manual_seed(0)
    mixer = VIEW_MIXERS[name](WIDTH).double()
    for parameter in mixer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return mixer


def in_data_world(mixer: ViewMixer) -> ViewMixer:
    """Removes the reference view."""
    for module in mixer.modules():
        if isinstance(module, CameraModule):
            module.reference = None
    return mixer


@torch.no_grad()
def mixed(mixer: ViewMixer, cameras: Cameras, tokens: Tensor | None = None) -> Tensor:
    return mixer(random_tokens() if tokens is None else tokens, cameras, GRID)


def change(mixer: ViewMixer, other: Cameras) -> float:
    return float((mixed(mixer, other) - mixed(mixer, scene())).abs().max())


def moved_world() -> Cameras:
    return scene().with_poses(scene().world_to_camera @ random_cameras(1, 1, seed=5)[0])


def world_views(mixer: ViewMixer) -> float:
    return change(in_data_world(mixer), moved_world())


def canonical(mixer: ViewMixer) -> float:
    return change(mixer, moved_world())


def scale(mixer: ViewMixer) -> float:
    poses = scene().world_to_camera.clone()
    poses[..., :3, 3] *= 3.28
    return change(mixer, scene().with_poses(poses))


def intrinsics(mixer: ViewMixer) -> float:
    wrong = scene().K_normalized * torch.tensor([1.2, 1.0, 1.0])[:, None]
    return change(mixer, Cameras(scene().world_to_camera, wrong))


def order(mixer: ViewMixer) -> float:
    """Measures the change under a permutation, with a reference view that is fixed beforehand."""
    mixer, cameras, to = in_data_world(mixer), scene().canonical("middle"), torch.tensor([2, 0, 3, 1])
    other = Cameras(cameras.world_to_camera[:, to], cameras.K_normalized[:, to])
    found = mixed(mixer, other, permuted(random_tokens(), to))
    return float((found - permuted(mixed(mixer, cameras), to)).abs().max())


PROPERTIES = [world_views, canonical, scale, intrinsics, order]


@pytest.mark.parametrize("name", VIEW_MIXERS)
def test_declared_symmetries_are_measured(name: str) -> None:
    assert [field.name for field in fields(ViewSymmetries)] == [each.__name__ for each in PROPERTIES]
    for measure in PROPERTIES:
        mixer = trained(name)
        declared, measured = getattr(mixer.symmetries, measure.__name__), measure(mixer)
        if not declared:
            assert measured > MOVES, measure
        elif measure is intrinsics:  # bit for bit
            assert measured == 0, measure
        else:
            assert measured < EXACT, measure


@pytest.mark.parametrize("name", VIEW_MIXERS)
def test_has_an_effect_only_after_training(name: str) -> None:
    other = Cameras(random_cameras(1, 4, seed=9)[0], scene().K_normalized * torch.tensor([1.3, 1.0, 1.0])[:, None])
    assert change(trained(name), other) > MOVES
    tokens = random_tokens()
    assert torch.equal(mixed(VIEW_MIXERS[name](WIDTH).double(), scene(), tokens), tokens)


def test_numbered_views_break_the_order() -> None:
    """A control: a mixer with a positional embedding of the views."""
    mixer = trained("ViewAttention(GTA)")
    forward = mixer.forward

    def numbered(tokens: Tensor, *scene: object) -> Tensor:
        return forward(tokens + torch.arange(len(tokens))[:, None], *scene)  # type: ignore[arg-type]

    mixer.forward = numbered  # type: ignore[method-assign]
    assert order(mixer) > MOVES
