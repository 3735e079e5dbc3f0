"""Parts of the zoo in a decoder whose positions have one axis, as a LLaVA's.

Encodings keep the symmetries that they have with mRoPE. Those that act on a section of mRoPE are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from docs.symmetries import COMBINATIONS, fits_one_axis
from tests.tiny import QUESTIONS, inputs_of, logits_of, tiny_batch, tiny_scene
from tests.zoo.decoder import FAST, case
from zoo import SpatialVLM
from zoo.cameras import Cameras, SceneGeometry
from zoo.encodings import CameraEncoding, PointRoPE
from zoo.encodings.testing import (
    ONE_AXIS,
    PROPERTIES,
    effect,
    holds,
    other_cameras,
    random_cameras,
    random_sequence,
)
from zoo.errors import InputError
from zoo.published.cambrian_s import TinyCambrianS
from zoo.sequences.loaded_scene import LoadedScene
from zoo.tasks import VideoQATask

MOVES = 1e-3
FITTING = [name for name, make in COMBINATIONS.items() if fits_one_axis(make())]
REFUSED = [name for name in COMBINATIONS if name not in FITTING]


# ---- Encodings in a reference attention ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [case(name in FAST, COMBINATIONS[name], id=name) for name in FITTING])
def test_symmetries_are_those_with_mrope(make: Callable[[], CameraEncoding]) -> None:
    """In float64. The controls: every cell that is not declared is measurably broken, and cameras have an effect."""
    found = {each.__name__: holds(each.__name__, each(make(), ONE_AXIS)) for each in PROPERTIES}
    assert found == asdict(make().symmetries)
    assert effect(make(), ONE_AXIS) > MOVES
    if make().uses_cameras and not make().uses_points:
        assert other_cameras(make(), ONE_AXIS) > MOVES


def test_points_rotate_pairs_by_their_coordinates_in_turn() -> None:
    """By all three. A pair's angle is 2 pi p / lambda, with lambda from 0.5 m to 8 m within each coordinate."""
    (poses, K), sequence = random_cameras(2), random_sequence(1).in_order()
    cameras = Cameras(poses, K, sequence.index).with_tokens(points=sequence.points)
    encoded = PointRoPE(shortest=0.5, longest=8.0, reference=None).encode(cameras, ONE_AXIS, torch.float64)
    (q, k, _), pairs = sequence.qkv, len(ONE_AXIS.axes)
    for given, found in zip((q, k), encoded.after_rope(q, k), strict=True):
        turned = torch.complex(*given.split(pairs, -1)).conj() * torch.complex(*found.split(pairs, -1))
        for pair in range(pairs):
            turn, number = pair // 3, pair % 3
            wavelength = 0.5 * 16 ** (turn / (len(range(number, pairs, 3)) - 1))
            point = sequence.points[..., 2 - number].where(sequence.index >= 0, 0.0)
            angle = 2 * math.pi * point / wavelength
            length = given[..., pair].square() + given[..., pair + pairs].square()
            expected = torch.polar(length, angle[..., None].expand(length.shape))
            torch.testing.assert_close(turned[..., pair], expected, rtol=0, atol=1e-11)


# ---- Encodings in a model --------------------------------------------------------------------------------------------


@cache
def backbone() -> TinyCambrianS:
    return TinyCambrianS(layers=3, hidden_size=64, heads=2, key_value_heads=1, vision_hidden_size=32)


def stills(name: str, seed: int = 0, steps: int = 2, questions: int = 2) -> LoadedScene:
    """A scene of images."""
    scene = tiny_scene(name, QUESTIONS[:questions], steps, seed)
    return replace(scene, kind="image", frame_indices=tuple(range(2 * steps)))


def test_a_combination_is_refused_if_it_acts_on_a_section() -> None:
    kinds = ("TemporalSection", "LowFrequencies", "HighFrequencies", "AlternateAxes", "PoseAxis", "PoseIndex")
    assert [name for name in COMBINATIONS if any(kind in name for kind in kinds)] == REFUSED


@pytest.mark.parametrize("name", REFUSED)
def test_encodings_on_sections_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError, match="this backbone's positions have one axis: take PRoPE on") as error:
        SpatialVLM(backbone(), camera_encoding=COMBINATIONS[name]())
    assert "\n" not in str(error.value)


def tiny_task(**parts: Any) -> VideoQATask:
    """A model with random weights under which attention is sharp, as if trained."""
    torch.manual_seed(0)
    task = VideoQATask(backbone=backbone(), allow_untrained=True, **parts)
    generator = torch.Generator().manual_seed(1)
    for parameter in task.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
    for parameter in parts["camera_encoding"].parameters() if "camera_encoding" in parts else ():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return task.eval()


@torch.no_grad()
def logits(task: VideoQATask, scene: LoadedScene) -> Tensor:
    return logits_of(task, inputs_of(task, tiny_batch(task, scene)))


def with_poses(scene: LoadedScene, change: Callable[[Tensor], Tensor]) -> LoadedScene:
    assert scene.geometry is not None
    given = scene.geometry.present()
    poses = change(given.pop("world_to_camera"))
    return replace(scene, geometry=SceneGeometry(world_to_camera=poses, **given))


@pytest.mark.parametrize("name", [case(name in FAST, name) for name in FITTING])
def test_cameras_change_logits_and_another_world_does_not(name: str) -> None:
    task, plain, scene = tiny_task(camera_encoding=COMBINATIONS[name]()), tiny_task(), stills("a")
    given = logits(task, scene)
    assert (given - logits(plain, scene)).abs().max() > MOVES
    world = random_cameras(1, 1, seed=5)[0][0, 0]
    assert task.model.camera_encoding.symmetries.canonical
    torch.testing.assert_close(logits(task, with_poses(scene, lambda poses: poses @ world)), given, atol=2e-4, rtol=0)
    if task.model.camera_encoding.uses_cameras:
        assert (logits(task, with_poses(scene, lambda poses: poses.flip(0))) - given).abs().max() > MOVES
