"""Measures the declared symmetries of every combination, in both directions, in float64 attention.

Declared symmetries hold to 1e-10; the others are measurably broken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import pytest

from docs.symmetries import COMBINATIONS, DOCUMENT, VIEW_MIXERS, document
from tests.zoo.combinations import NAMES, OTHERS
from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.encodings import (
    GTA,
    CameraEncoding,
    CaPE,
    Compose,
    HeadSubset,
    LayerSubset,
    PointRoPE,
    PoseALiBi,
    PRoPE,
    RayEmbedding,
    RayEncoding,
    RayRoPE,
    URoPE,
    ValueRoPE,
    ViewAttention,
)
from zoo.encodings.base import CameraModule, HeadLayout
from zoo.encodings.compose import EncodingWrapper
from zoo.encodings.placements import Matrices
from zoo.encodings.testing import (
    BROKEN,
    EXACT,
    LAYOUTS,
    PROPERTIES,
    canonical,
    effect,
    holds,
    other_cameras,
    scale,
    shift,
    world_views,
)
from zoo.errors import InputError

MOVES = 1e-3


OF_TWO_KINDS = "part of the channels"  # whose own encodings are measured in test_hybrid.py
RAYS = "RayRoPE, known depth, one ray, qk, ChannelRange, scale rms"
FIRST_LAYOUT = next(iter(LAYOUTS))  # in it every combination is measured by every run, in the second each encoding
IN_LAYOUTS = [pytest.param(each, marks=() if each == FIRST_LAYOUT else pytest.mark.slow) for each in LAYOUTS]
COMBINED = [
    pytest.param(
        layout,
        name,
        marks=() if layout == FIRST_LAYOUT or (layout != OF_TWO_KINDS and name not in OTHERS) else pytest.mark.slow,
    )
    for layout in LAYOUTS
    for name in COMBINATIONS
]
in_layouts = pytest.mark.parametrize(("head", "name"), COMBINED, indirect=["head"])


@pytest.fixture(params=IN_LAYOUTS)
def head(request: pytest.FixtureRequest) -> HeadLayout:
    """The axes of the frequencies of a head."""
    return LAYOUTS[request.param]


def skip_coincidence(name: str, head: HeadLayout) -> None:
    """Where the channels of `RAYS` pair as RoPE's do, it keeps the shift of positions, which it does not state."""
    if name == RAYS and head == LAYOUTS[OF_TWO_KINDS]:
        pytest.skip("its channels pair as RoPE's in this layout")


@in_layouts
def test_declared_symmetries_are_measured(name: str, head: HeadLayout) -> None:
    skip_coincidence(name, head)
    measured = {each.__name__: holds(each.__name__, each(COMBINATIONS[name](), head)) for each in PROPERTIES}
    assert measured == asdict(COMBINATIONS[name]().symmetries)


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_symmetries_with_grouped_query_attention(name: str, kv_heads: int, head: HeadLayout) -> None:
    skip_coincidence(name, head)
    encodings = [COMBINATIONS[name]() for _ in range(2)]
    for encoding, measure in zip(encodings, (canonical, shift), strict=True):
        if any(isinstance(m, HeadSubset) and max(m.key_value_heads) >= kv_heads for m in encoding.modules()):
            with pytest.raises(InputError, match="the decoder has key_value_heads 0 to 0"):
                measure(encoding, head, kv_heads)
        else:
            measured = measure(encoding, head, kv_heads)
            assert measured < EXACT if getattr(encoding.symmetries, measure.__name__) else measured > BROKEN


WITH_SCALE: dict[str, Callable[..., CameraEncoding]] = {
    "PRoPE": PRoPE,
    "GTA": GTA,
    "CaPE": CaPE,
    "RayEncoding": RayEncoding,
    "PointRoPE": PointRoPE,
    "PoseALiBi": PoseALiBi,
    "RayRoPE": RayRoPE,
    "URoPE": URoPE,
}


@pytest.mark.parametrize("unit", ["none", "mean", "max", "rms", "median_depth"])
@pytest.mark.parametrize("name", WITH_SCALE)
def test_every_scale_makes_the_unit_cancel(name: str, unit: str, head: HeadLayout) -> None:
    encoding = WITH_SCALE[name](scale=unit)
    assert encoding.symmetries.scale == (unit != "none")
    assert scale(encoding, head) < EXACT if unit != "none" else scale(encoding, head) > BROKEN


@pytest.mark.parametrize("view", [None, "first", "middle", "medoid", "saddle_balanced"])
@pytest.mark.parametrize("name", [name for name in WITH_SCALE if name not in ("PoseALiBi", "RayRoPE", "URoPE")])
def test_every_reference_view_makes_the_world_cancel_for_text(name: str, view: str | None, head: HeadLayout) -> None:
    encoding = WITH_SCALE[name](reference=view)
    assert encoding.symmetries.canonical == (view is not None)
    assert canonical(encoding, head) < EXACT if view is not None else canonical(encoding, head) > BROKEN


@in_layouts
def test_cameras_have_an_effect(name: str, head: HeadLayout) -> None:
    """An encoding without effect would have every symmetry; other cameras change no positions and no points."""
    encoding = COMBINATIONS[name]()
    assert effect(encoding, head) > MOVES
    if encoding.uses_cameras and not encoding.uses_points:
        assert other_cameras(COMBINATIONS[name](), head) > MOVES


class CameraToWorldCaPE(CaPE):
    """A control: camera-to-world poses."""

    def matrices(self, cameras: Cameras) -> Matrices:
        return super().matrices(cameras.with_poses(invert_se3(cameras.world_to_camera)))


def test_cape_requires_world_to_camera(head: HeadLayout) -> None:
    assert world_views(CaPE(), head) < EXACT
    assert world_views(CameraToWorldCaPE(), head) > BROKEN


def test_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == document(), "run python -m docs.symmetries"


# ---- what a module needs of the cameras -------------------------------------------------------------------

CONTAINERS = (Compose, EncodingWrapper, ViewAttention)
MODULES: dict[str, Callable[[], CameraModule]] = {
    **COMBINATIONS,
    **{name: partial(make, 32) for name, make in VIEW_MIXERS.items()},
    "nested median depth": lambda: Compose([ValueRoPE(), LayerSubset(HeadSubset(GTA(scale="median_depth"), [0]))]),
    "nested points": lambda: HeadSubset(Compose([PoseALiBi(scale="median_depth"), PointRoPE()]), [0]),
    "no cameras": lambda: LayerSubset(Compose([ValueRoPE()])),
    "ViewAttention, median depth": lambda: ViewAttention(32, 16, PRoPE(scale="median_depth")),
    "ViewAttention, saddle_balanced": lambda: ViewAttention(32, 16, GTA(reference="saddle_balanced")),
    "RayEmbedding, saddle_balanced": lambda: RayEmbedding(32, reference="saddle_balanced"),
}


@pytest.mark.parametrize("name", MODULES)
def test_needs_are_those_of_all_submodules(name: str) -> None:
    module = MODULES[name]()
    leaves = [m for m in module.modules() if isinstance(m, CameraModule) and not isinstance(m, CONTAINERS)]
    assert module.uses_cameras == any(not isinstance(m, ValueRoPE) for m in leaves)
    assert module.uses_points == any(
        isinstance(m, PointRoPE) or (isinstance(m, RayRoPE) and m.depth == "known") for m in leaves
    )
    assert module.uses_median_depth == any(m.scale == "median_depth" for m in leaves)
    assert module.uses_balanced_reference == any(m.reference == "saddle_balanced" for m in leaves)
