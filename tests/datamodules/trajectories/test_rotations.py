"""Rotations against the matrix exponential, which says what they are."""

from __future__ import annotations

import math

import pytest
import torch

from datamodules.trajectories.base import from_axis_angle, slerp


def axes(n: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, 3, generator=generator, dtype=torch.float64), dim=1)


def test_axis_angle_turns_by_the_right_hand_rule():
    quarter = from_axis_angle(torch.tensor([[0.0, 0.0, math.pi / 2]], dtype=torch.float64))[0]
    x = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    assert torch.allclose(quarter @ x, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), atol=1e-15)
    assert not torch.allclose(quarter.mT @ x, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))  # negative control


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.3, 1.5, 3.0])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.9, 1.0])
def test_slerp_turns_at_an_even_rate_about_one_axis(angle, share):
    start = from_axis_angle(2 * axes(seed=1))
    step = axes() * angle
    between = slerp(start, start @ from_axis_angle(step), torch.full((len(step),), share, dtype=torch.float64))
    assert torch.allclose(between, start @ from_axis_angle(share * step), atol=1e-9)
    if 0 < share < 1 and angle > 1:  # negative control: blended matrices are something else
        blended = torch.lerp(start, start @ from_axis_angle(step), share)
        assert not torch.allclose(between, blended, atol=1e-2)


def test_slerp_takes_the_shorter_way():
    start = torch.eye(3, dtype=torch.float64)[None]
    end = from_axis_angle(torch.tensor([[0.0, 0.0, 1.5 * math.pi]], dtype=torch.float64))
    middle = slerp(start, end, torch.tensor([0.5], dtype=torch.float64))
    expected = from_axis_angle(torch.tensor([[0.0, 0.0, -math.pi / 4]], dtype=torch.float64))
    assert torch.allclose(middle, expected, atol=1e-12)
