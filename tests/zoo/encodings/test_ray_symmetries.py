"""Declared symmetries of RayRoPE's options, in both directions: which points it rotates by decides some of them."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from tests.zoo.encodings import test_view_symmetries as of_views
from zoo.encodings import RayAttention, RayRoPE
from zoo.encodings.per_view import PerViewEncoding
from zoo.encodings.rayrope import KINDS
from zoo.encodings.testing import EXACT, PROPERTIES, holds, identity_stock, intrinsics, scale

SPACES = product((None, "pj", "3d"), repeat=len(KINDS))
NAMED = [[f"{kind}_{space}" for kind, space in zip(KINDS, spaces, strict=True) if space] for spaces in SPACES]
POINTS = ["+".join(names) for names in NAMED if names]
SOME = ("0_3d", "0_pj", "inf_3d", "d_pj", "d_pj+0_3d")
OPTIONS: list[dict[str, Any]] = [
    *({"depth_encoding": "inv_d"}, {"depth_encoding": "asinh_d"}, {"rays": 2}, {"rays": 3}),
    *({"depth": "known"}, {"predicts_width": False}, {"apply_to": "qk"}, {"scale": "rms"}),
]
FAST: tuple[dict[str, Any], ...] = ({"depth": "known"}, {"apply_to": "qk"})


def has_rays(points: str) -> bool:
    """Whether there are points other than the camera center."""
    return "d_" in points or "inf_" in points


def check(points: str, **options: Any) -> None:
    fewest: dict[str, Any] = {"rays": 1} if has_rays(points) else {}
    for measure in PROPERTIES:
        encoding = RayRoPE(points, **{**fewest, **options})
        declared = getattr(encoding.symmetries, measure.__name__)
        assert holds(measure.__name__, measure(encoding)) is declared, measure.__name__


@pytest.mark.parametrize(
    "points", [pytest.param(each, marks=() if each in SOME else pytest.mark.slow) for each in POINTS]
)
def test_declared_symmetries_of_points_are_measured(points: str) -> None:
    check(points=points)


def acts(option: dict[str, Any], points: str) -> bool:
    """Whether the points are not refused as without it."""
    if "depth_encoding" in option:
        return "_pj" in points.replace("inf_pj", "")
    if "rays" in option:
        return has_rays(points)
    if "scale" in option:
        return not points.startswith("inf_") or "+" in points
    return "d_" in points or not {"depth", "predicts_width"} & option.keys()


@pytest.mark.parametrize(
    "options, points",
    [
        pytest.param(
            option, each, marks=() if option in FAST and each == SOME[-1] else pytest.mark.slow, id=f"{option}, {each}"
        )
        for option, each in product(OPTIONS, SOME)
        if acts(option, each)
    ],
)
def test_declared_symmetries_of_other_options_are_measured(options: dict[str, Any], points: str) -> None:
    check(points=points, **options)


def test_what_holds_for_some_points_alone() -> None:
    """The control: declared as for all encodings of this kind, the first two would be found out."""
    centers, directions = RayRoPE("0_3d"), RayRoPE("inf_pj", rays=1)
    by_kind = [PerViewEncoding.symmetries.fget(each) for each in (centers, directions)]  # type: ignore[attr-defined]
    assert not by_kind[0].intrinsics and holds("intrinsics", intrinsics(centers))
    assert not by_kind[1].scale and holds("scale", scale(directions))
    # identity cameras turn nothing here, but views attend in calls of their own, which round otherwise
    assert identity_stock(RayRoPE("0_3d")) < EXACT and not centers.symmetries.identity_stock


@pytest.mark.parametrize("points", SOME)
def test_those_of_a_view_mixer_are_its_encodings(points: str) -> None:
    fewest: dict[str, Any] = {"rays": 1} if has_rays(points) else {}
    mixer = RayAttention(of_views.WIDTH, 16, RayRoPE(points, **fewest)).double()
    torch.manual_seed(0)
    for parameter in mixer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    for measure in of_views.PROPERTIES:
        declared = getattr(mixer.symmetries, measure.__name__)
        assert holds(measure.__name__, measure(mixer)) is declared, measure.__name__
