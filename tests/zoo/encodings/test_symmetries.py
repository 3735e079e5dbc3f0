"""Measures the declared symmetries of every encoding and view mixer, in both directions, in float64.

Every run takes an encoding of each kind, and the slow tests take all. A declared symmetry holds to 1e-10, and one that
is not declared is measurably broken. An encoding without effect would have every symmetry, so each one must also change
the outputs. The controls at the end break one rule at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from docs.symmetries import COMBINATIONS, HYBRID, VIEW_MIXERS, bound
from tests.zoo.decoder import FAST, NAMES, case
from zoo.cameras import Cameras, invert_se3
from zoo.encodings import (
    GTA,
    AlternateAxes,
    CameraEncoding,
    CaPE,
    ChannelRange,
    Compose,
    DeltaNetLayers,
    EncodedCameras,
    HeadSubset,
    LayerSubset,
    LowFrequencies,
    MatrixEncoding,
    PointRoPE,
    PoseALiBi,
    PRoPE,
    RayAttention,
    RayEncoding,
    RayRoPE,
    TemporalSection,
    UnrotatedChannels,
    URoPE,
    ValueRoPE,
    ViewAttention,
    ViewMixer,
)
from zoo.encodings.alibi import DistanceChannels
from zoo.encodings.base import CameraModule, HeadLayout
from zoo.encodings.per_view import PerViewAttention
from zoo.encodings.placements import Matrices
from zoo.encodings.testing import (
    BROKEN,
    EXACT,
    HEAD,
    HEAD_DIM,
    HYBRID_HEAD,
    LAYERS,
    LAYOUTS,
    PROPERTIES,
    Decoder,
    canonical,
    effect,
    holds,
    identity_stock,
    intrinsics,
    other_cameras,
    random_cameras,
    random_sequence,
    scale,
    sequence_for,
    shift,
    world_views,
)
from zoo.errors import InputError

MOVES = 1e-3
# encodings whose channels follow the table of axes, or that treat each view in its own way: in every layout of heads
IN_EVERY_LAYOUT = (
    *("PRoPE, TemporalSection", "PRoPE, LowFrequencies", "PRoPE, FrequencyRange", "PRoPE, AlternateAxes x and y"),
    *("PoseALiBi", "PoseAxis", "ValueRoPE", "PointRoPE", "RayRoPE", "URoPE"),
)
CASES = [
    *(case(name in FAST, make, HEAD, id=name) for name, make in COMBINATIONS.items()),
    *(
        case(name in FAST, COMBINATIONS[name], head, id=f"{name}, {layout}")
        for layout, head in LAYOUTS.items()
        for name in IN_EVERY_LAYOUT
        if head != HEAD
    ),
    *(case(name in FAST, make, HYBRID_HEAD, id=name) for name, make in HYBRID.items()),
]


def check(make: Callable[[], CameraEncoding], head: HeadLayout = HEAD) -> None:
    """Compare what an encoding declares with what is measured."""
    declared = (bound(make()) if head is HYBRID_HEAD else make()).symmetries
    assert {each.__name__: holds(each.__name__, each(make(), head)) for each in PROPERTIES} == asdict(declared)


@pytest.mark.parametrize(("make", "head"), CASES)
def test_declared_symmetries_are_measured(make: Callable[[], CameraEncoding], head: HeadLayout) -> None:
    check(make, head)
    assert effect(make(), head) > MOVES
    if make().uses_cameras and not make().uses_points:  # other cameras change no positions and no points
        assert other_cameras(make(), head) > MOVES


@pytest.mark.parametrize("name", [case(name in FAST, name) for name in HYBRID])
def test_an_encoding_acts_in_the_layers_that_it_names(name: str) -> None:
    """The other kind of layer is stock, bit for bit."""
    poses, K = random_cameras(2)
    encoding = HYBRID[name]()
    outputs, stock = (
        Decoder(each, head=HYBRID_HEAD).attend(sequence_for(encoding, 3), poses, K) for each in (encoding, None)
    )
    moved = [not torch.equal(a, b) for a, b in zip(outputs, stock, strict=True)]
    assert moved == [not name.startswith("DeltaNet")] * LAYERS + ["DeltaNet" in name]


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize(
    "name", ["PRoPE, ChannelRange", "GTA, ExtraChannels", "PoseALiBi", "ValueRoPE", "RayRoPE", "URoPE"]
)
def test_symmetries_with_grouped_query_attention(name: str, kv_heads: int) -> None:
    for measure in (canonical, shift):
        encoding = COMBINATIONS[name]()
        assert (measure(encoding, HEAD, kv_heads) < EXACT) == getattr(encoding.symmetries, measure.__name__)


WITH_SCALE: dict[str, Callable[..., CameraEncoding]] = {
    each.__name__: each for each in (PRoPE, GTA, CaPE, RayEncoding, PointRoPE, PoseALiBi, RayRoPE, URoPE)
}


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        case(unit in ("none", "rms") or name in ("PRoPE", "RayRoPE"), name, unit)  # a class of each base
        for name, unit in product(WITH_SCALE, ("none", "mean", "max", "rms", "median_depth"))
    ],
)
def test_every_scale_makes_the_unit_cancel(name: str, unit: str) -> None:
    encoding = WITH_SCALE[name](scale=unit)
    assert encoding.symmetries.scale == (unit != "none")
    assert scale(encoding) < EXACT if unit != "none" else scale(encoding) > BROKEN


@pytest.mark.parametrize(
    ("name", "view"),
    [
        case(view in (None, "medoid") or name in ("PRoPE", "PointRoPE"), name, view)  # a class of each base
        for name, view in product(WITH_SCALE, (None, "first", "middle", "medoid", "saddle_balanced"))
        if name not in ("PoseALiBi", "RayRoPE", "URoPE")
    ],
)
def test_every_reference_view_makes_the_world_cancel_for_text(name: str, view: str | None) -> None:
    encoding = WITH_SCALE[name](reference=view)
    assert encoding.symmetries.canonical == (view is not None)
    assert canonical(encoding) < EXACT if view is not None else canonical(encoding) > BROKEN


# ---- compositions and options whose symmetries depend on their parts -------------------------------------------------


@pytest.mark.parametrize(
    ("encodings", "keeps_world"),
    [
        ([GTA(), ValueRoPE()], False),  # positional rotations between the cameras' matrices do not cancel
        ([ValueRoPE(), GTA()], True),
        ([LayerSubset(ValueRoPE()), GTA()], True),
        ([Compose([ValueRoPE()]), GTA()], True),
        ([PRoPE(), GTA()], False),
        ([PRoPE(), PRoPE(TemporalSection())], False),
        ([PRoPE(ChannelRange(0, 0.25)), GTA(ChannelRange(0.75, 1.0))], True),
        ([GTA(apply_to="vo"), LayerSubset(GTA(apply_to="qk"))], True),
        ([GTA(AlternateAxes([LowFrequencies(4, "w", shared_frequency=True), ChannelRange()])), GTA()], False),
    ],
)
def test_world_invariance_is_lost_where_encodings_overlap(encodings: list[CameraEncoding], keeps_world: bool) -> None:
    encoding = Compose(encodings)
    assert encoding.symmetries.world_views == keeps_world
    measured = world_views(encoding)
    assert measured < EXACT if keeps_world else measured > BROKEN


def test_alternating_placements_declare_what_they_keep_in_a_hybrid_decoder() -> None:
    placement = AlternateAxes([ChannelRange(0.75, 0.875), ChannelRange(0.875, 1.0)])  # RoPE leaves these alone
    assert bound(PRoPE(placement)).symmetries.shift and shift(PRoPE(placement), HYBRID_HEAD) < EXACT


# which points RayRoPE rotates by decides some of its symmetries; "0" is the camera's center, "inf" a direction
POINTS = [case(True, each) for each in ("0_3d", "inf_pj", "d_3d", "d_pj+0_3d")]
POINTS += [case(False, each) for each in ("0_pj", "inf_3d", "d_pj", "d_3d+inf_pj", "inf_pj+0_3d")]
OPTIONS = [case(True, each) for each in ({"depth": "known"}, {"predicts_width": False}, {"apply_to": "qk"})]
OPTIONS += [case(False, {"depth_encoding": each}) for each in ("inv_d", "asinh_d")]
OPTIONS += [case(False, each) for each in ({"rays": 3}, {"scale": "rms"})]


def of_points(points: str, **options: Any) -> RayRoPE:
    return RayRoPE(points, **{**({"rays": 1} if "d_" in points or "inf_" in points else {}), **options})


@pytest.mark.parametrize("points", POINTS)
def test_declared_symmetries_of_points_are_measured(points: str) -> None:
    check(partial(of_points, points))
    mixer = trained(lambda width: RayAttention(width, 16, of_points(points)))
    for name, measure in MIXER_PROPERTIES.items():
        assert holds(name, measure(mixer)) is getattr(mixer.symmetries, name), name


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_declared_symmetries_of_options_are_measured(options: dict[str, Any]) -> None:
    check(partial(of_points, "d_pj+0_3d", **options))


def test_what_holds_for_some_points_alone() -> None:
    """With the symmetries of other points declared, these encodings would fail the test."""
    centers, directions, usual = of_points("0_3d"), of_points("inf_pj"), of_points("d_pj")
    assert not usual.symmetries.intrinsics and holds("intrinsics", intrinsics(centers))
    assert not usual.symmetries.scale and holds("scale", scale(directions))
    # identity cameras turn nothing here, but views attend in calls of their own, which round otherwise
    assert identity_stock(of_points("0_3d")) < EXACT and not centers.symmetries.identity_stock


# ---- to the last bit -------------------------------------------------------------------------------------------------


def through(acting: EncodedCameras, q: Tensor, k: Tensor, v: Tensor) -> tuple[list[list[Tensor]], Tensor]:
    """Return q, k and v (B, L, heads, D) of each attention call, and the output of one that returns its queries."""
    calls: list[list[Tensor]] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> tuple[Tensor, None]:
        calls.append([x.transpose(1, 2) for x in (q, k, v)])
        return F.pad(q[..., :HEAD_DIM], (0, v.shape[-1] - HEAD_DIM)).transpose(1, 2), None

    inputs = (*acting.after_rope(*acting.before_rope(q, k)), acting.transform_values(v))
    output, _ = acting.attend(attention, *(x.transpose(1, 2) for x in inputs), None)
    return calls, acting.transform_outputs(output)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_round_cameras(name: str) -> None:
    """Matrices, biases and angles remain float32 in bf16-mixed; projected extra channels may be rounded."""
    encoding, sequence = COMBINATIONS[name](), random_sequence(2)
    decoder = Decoder(encoding)
    encoding.float()
    q, k, v = (x.float() for x in sequence.qkv)
    far, K = random_cameras(2)
    far[..., :3, 3] *= 100  # rounding such a pose to bfloat16 gives errors up to 0.4
    results = []
    for on, given in ((False, far), (True, far), (False, far.bfloat16().double())):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            encoded = encoding.encode(sequence.cameras(given, K), HEAD)
            acting = encoded.at_layer(0, sequence.hidden_states.float(), decoder.rope(sequence.ids)) or EncodedCameras()
            calls, output = through(acting, q, k, v)
        results.append([x[..., :HEAD_DIM] for x in (*sum(calls, []), output)])
        if isinstance(acting, DistanceChannels):  # the bias itself
            results[-1].append(calls[0][0][..., HEAD_DIM:])
    for exact, under in zip(*results[:2], strict=True):
        assert under.dtype == torch.float32 and torch.equal(under, exact)
    if encoding.attends_per_view:  # the control: with rounded cameras something reaches the attention otherwise
        assert not all(map(torch.equal, results[0], results[2]))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_without_camera_change_no_bit(name: str, dtype: torch.dtype) -> None:
    """Text and views without a camera stand beside views with one. Their appended channels are zero."""
    encoding, sequence = COMBINATIONS[name](), random_sequence(3)
    decoder = Decoder(encoding)
    sequence.index = index = torch.where(sequence.index == 1, -1, sequence.index)
    encoded = encoding.encode(sequence.cameras(*random_cameras(2)), HEAD)
    q, k, v = (x.to(dtype) for x in sequence.qkv)
    for layer in range(LAYERS):
        acting = encoded.at_layer(layer, sequence.hidden_states.to(dtype), decoder.rope(sequence.ids))
        acting = acting or EncodedCameras()
        calls, output = through(acting, q, k, v)
        found = [(index, q, output)]
        if isinstance(acting, PerViewAttention):
            for call, reached in zip(acting.calls, calls, strict=True):
                selected = zip((call.of_queries, call.of_keys, call.of_keys), (q, k, v), reached, strict=True)
                found += [(of(index), of(given), out) for of, given, out in selected]
        else:
            found += [(index, given, out) for given, out in zip((q, k, v), calls[0], strict=True)]
        for cameras, given, out in found:
            without, appended = out[cameras < 0].split((HEAD_DIM, out.shape[-1] - HEAD_DIM), -1)
            assert out.dtype == dtype
            assert torch.equal(without, given[cameras < 0]) and not appended.any()
        if encoding.attends_per_view:  # the control: tokens with a camera are changed
            assert not all(torch.equal(given, out) for _, given, out in found)


# ---- view mixers -----------------------------------------------------------------------------------------------------

VIEWS, WIDTH = 4, 32
GRID = (VIEWS, 2, 3)


def trained(make: Callable[[int], ViewMixer]) -> ViewMixer:
    """Build a mixer and draw the parameters that start at zero."""
    torch.manual_seed(0)
    mixer = make(WIDTH).double()
    for parameter in mixer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return mixer


def without_reference(mixer: ViewMixer) -> ViewMixer:
    for module in mixer.modules():
        if isinstance(module, CameraModule):
            module.reference = None
    return mixer


def tokens() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(VIEWS * 6, WIDTH, generator=generator, dtype=torch.float64)


def views() -> Cameras:
    poses, K = random_cameras(1, VIEWS)
    K[..., :2, :] *= torch.linspace(0.8, 1.2, VIEWS, dtype=K.dtype)[:, None, None]  # a zooming camera
    return Cameras(poses, K)


@torch.no_grad()
def change(mixer: ViewMixer, other: Cameras) -> float:
    return float((mixer(tokens(), other, GRID) - mixer(tokens(), views(), GRID)).abs().max())


def mixer_canonical(mixer: ViewMixer) -> float:
    return change(mixer, views().with_poses(views().world_to_camera @ random_cameras(1, 1, seed=5)[0]))


def mixer_world_views(mixer: ViewMixer) -> float:
    return mixer_canonical(without_reference(mixer))


def mixer_scale(mixer: ViewMixer) -> float:
    poses = views().world_to_camera.clone()
    poses[..., :3, 3] *= 3.28
    return change(mixer, views().with_poses(poses))


def mixer_intrinsics(mixer: ViewMixer) -> float:
    wrong = views().K_normalized * torch.tensor([1.2, 1.0, 1.0])[:, None]
    return change(mixer, Cameras(views().world_to_camera, wrong))


def permuted(x: Tensor, order: Tensor) -> Tensor:
    return x.unflatten(0, (VIEWS, -1))[order].flatten(0, 1)


@torch.no_grad()
def mixer_order(mixer: ViewMixer) -> float:
    """Measure the change under a permutation, with a reference view that is fixed beforehand."""
    mixer, cameras, to = without_reference(mixer), views().canonical("middle"), torch.tensor([2, 0, 3, 1])
    other = Cameras(cameras.world_to_camera[:, to], cameras.K_normalized[:, to])
    found = mixer(permuted(tokens(), to), other, GRID)
    return float((found - permuted(mixer(tokens(), cameras, GRID), to)).abs().max())


MIXER_PROPERTIES: dict[str, Callable[[ViewMixer], float]] = {
    "world_views": mixer_world_views,
    "canonical": mixer_canonical,
    "scale": mixer_scale,
    "intrinsics": mixer_intrinsics,
    "order": mixer_order,
}


@pytest.mark.parametrize("name", VIEW_MIXERS)
def test_declared_symmetries_of_view_mixers_are_measured(name: str) -> None:
    measured = {each: holds(each, of(trained(VIEW_MIXERS[name]))) for each, of in MIXER_PROPERTIES.items()}
    assert measured == asdict(trained(VIEW_MIXERS[name]).symmetries)
    other = Cameras(random_cameras(1, VIEWS, seed=9)[0], views().K_normalized * torch.tensor([1.3, 1, 1])[:, None])
    assert change(trained(VIEW_MIXERS[name]), other) > MOVES
    with torch.no_grad():  # before any training a mixer does nothing
        assert torch.equal(VIEW_MIXERS[name](WIDTH).double()(tokens(), views(), GRID), tokens())


# ---- controls: each breaks one rule ----------------------------------------------------------------------------------


class WithoutTerm(PRoPE):
    """PRoPE without the matrices of one term."""

    def __init__(self, term: str) -> None:
        super().__init__(reference=None)
        self.term = term

    def matrices(self, cameras: Cameras) -> Matrices:
        return {term: each for term, each in super().matrices(cameras).items() if term != self.term}


class AllChannelsBeforeRoPE(ChannelRange):
    """All channels before RoPE, whose time positions differ between views."""

    before_rope = True


class MovingTime(TemporalSection):
    """The T section where each view has a time of its own."""

    requires_constant_time = False


class CameraToWorldCaPE(CaPE):
    """Camera-to-world poses."""

    def matrices(self, cameras: Cameras) -> Matrices:
        return super().matrices(cameras.with_poses(invert_se3(cameras.world_to_camera)))


@pytest.mark.parametrize(
    "encoding",
    [
        *(WithoutTerm(term) for term in "qkvo"),
        PRoPE(AllChannelsBeforeRoPE(0.0, 1.0)),
        PRoPE(MovingTime()),
        CameraToWorldCaPE(),
    ],
    ids=lambda each: getattr(each, "term", "") or type(each).__name__,
)
def test_a_broken_encoding_depends_on_the_world(encoding: CameraEncoding) -> None:
    assert world_views(encoding) > BROKEN


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_table_of_another_model_breaks_the_change_of_world(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The T section has no RoPE among the views only if the encoding uses the decoder's own table of axes."""
    sequence = random_sequence(0).constant_time()
    poses, K = random_cameras(2)
    world = random_cameras(2, 1, seed=5)[0]
    for other in LAYOUTS:
        decoder = Decoder(PRoPE(TemporalSection(), reference=None), head=LAYOUTS[name])
        rope = decoder.rope(sequence.ids)
        monkeypatch.setattr(decoder, "rope", lambda _, rope=rope: rope)
        decoder.head = LAYOUTS[other]  # of the encoding
        before, after = (decoder.attend(sequence, each, K) for each in (poses, poses @ world))
        assert ((before - after).abs().max() < EXACT) == (other == name)


class Unchecked(DeltaNetLayers):
    """Gated DeltaNet layers with an encoding that the class refuses."""

    def __init__(self, encoding: CameraEncoding) -> None:
        super(DeltaNetLayers, self).__init__(encoding)
        self.head = None


class Stretched(MatrixEncoding):
    """Rotations in another basis, which do not keep lengths."""

    def matrices(self, cameras: Cameras) -> Matrices:
        stretch = torch.diag(cameras.world_to_camera.new_tensor([3.0, 1.0, 1.0, 1.0]))
        V = stretch @ cameras.world_to_camera @ stretch.inverse()
        return {"q": V.mT, "k": V.inverse()}


class Turned(MatrixEncoding):
    """The same without the stretch."""

    keeps_rotations = True

    def matrices(self, cameras: Cameras) -> Matrices:
        return {"q": cameras.world_to_camera.mT, "k": cameras.world_to_camera.mT}


@pytest.mark.parametrize(
    ("make", "is_exact"),
    [
        (partial(PRoPE, UnrotatedChannels(), "qk"), False),
        (partial(GTA, UnrotatedChannels(), "qk"), False),
        (partial(CaPE, UnrotatedChannels()), False),
        (partial(Stretched, UnrotatedChannels(), "qk", "rotation"), False),
        (partial(GTA, UnrotatedChannels(), "qk", "rotation"), True),
        (partial(RayEncoding, UnrotatedChannels(), "qk", "rotation"), True),
        (partial(Turned, UnrotatedChannels(), "qk", "rotation"), True),
    ],
)
def test_gated_delta_net_takes_orthogonal_matrices_alone(make: Callable[[], MatrixEncoding], is_exact: bool) -> None:
    """General matrices on queries and keys keep the world in full attention, but lose it in Gated DeltaNet."""
    if not isinstance(make(), Stretched | Turned):
        assert world_views(make(), HYBRID_HEAD) < EXACT
    assert (world_views(Unchecked(make()), HYBRID_HEAD) < EXACT) == is_exact == make().is_orthogonal
    if is_exact:
        DeltaNetLayers(make())
    else:
        with pytest.raises(InputError, match=f"{type(make()).__name__} multiplies queries and keys"):
            DeltaNetLayers(make())


def test_numbered_views_break_the_order() -> None:
    """A mixer with a positional embedding of the views."""
    mixer = trained(VIEW_MIXERS["ViewAttention(GTA)"])
    forward = mixer.forward
    mixer.forward = lambda x, *scene: forward(x + torch.arange(len(x))[:, None], *scene)  # type: ignore[method-assign]
    assert mixer_order(mixer) > MOVES


# ---- what a module needs of the cameras ------------------------------------------------------------------------------

NEEDS: dict[str, tuple[Callable[[], CameraModule], set[str]]] = {
    "nested median depth": (
        lambda: Compose([ValueRoPE(), LayerSubset(HeadSubset(GTA(scale="median_depth"), [0]))]),
        {"cameras", "median_depth"},
    ),
    "nested points": (
        lambda: HeadSubset(Compose([PoseALiBi(scale="median_depth"), PointRoPE()]), [0]),
        {"cameras", "points", "median_depth"},
    ),
    "no cameras": (lambda: LayerSubset(Compose([ValueRoPE()])), set()),
    "known depth": (lambda: LayerSubset(RayRoPE(rays=1, depth="known")), {"cameras", "points"}),
    "mixer, median depth": (
        lambda: ViewAttention(32, 16, PRoPE(scale="median_depth")),
        {"cameras", "median_depth"},
    ),
    "mixer, saddle_balanced": (
        lambda: ViewAttention(32, 16, GTA(reference="saddle_balanced")),
        {"cameras", "balanced_reference"},
    ),
}


@pytest.mark.parametrize("name", NEEDS)
def test_needs_are_those_of_all_parts(name: str) -> None:
    make, expected = NEEDS[name]
    kinds = ("cameras", "points", "median_depth", "balanced_reference")
    assert {kind for kind in kinds if getattr(make(), f"uses_{kind}")} == expected
