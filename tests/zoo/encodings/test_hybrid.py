"""Encodings of a hybrid decoder: symmetries per kind of layer, and general matrices that Gated DeltaNet refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from docs.symmetries import HYBRID, bound
from tests.zoo.encodings.test_properties import MOVES
from zoo import Cameras, InputError, SpatialVLM, TinyQwen35
from zoo.encodings import (
    GTA,
    AlternateAxes,
    CameraEncoding,
    CaPE,
    ChannelRange,
    Compose,
    DeltaNetLayers,
    EncodedCameras,
    ExtraChannels,
    HeadSubset,
    LayerSubset,
    PoseALiBi,
    PoseIndex,
    PRoPE,
    RayEncoding,
    RayRoPE,
    TemporalSection,
    UnrotatedChannels,
    URoPE,
    ValueRoPE,
)
from zoo.encodings.compose import EncodedLinearLayers
from zoo.encodings.placements import Matrices
from zoo.encodings.prope import MatrixEncoding
from zoo.encodings.testing import (
    BROKEN,
    EXACT,
    HEAD_DIM,
    HYBRID_HEAD,
    KV_HEADS,
    LAYERS,
    PROPERTIES,
    Decoder,
    delta_net,
    delta_rule,
    from_stock,
    identity_stock,
    intrinsics,
    random_cameras,
    random_sequence,
    sequence_for,
    shift,
    text_stock,
    world_views,
)


@pytest.mark.parametrize("name", HYBRID)
def test_declared_symmetries_are_measured(name: str) -> None:
    """In layers of both kinds."""
    declared = bound(HYBRID[name]()).symmetries
    assert [field.name for field in fields(declared)] == [each.__name__ for each in PROPERTIES]
    for measure in PROPERTIES:
        measured = measure(HYBRID[name](), HYBRID_HEAD)
        if not getattr(declared, measure.__name__):
            assert measured > BROKEN, measure
        elif measure in (intrinsics, identity_stock, text_stock):
            assert measured == 0, measure
        else:
            assert measured < EXACT, measure


def test_alternating_placements_declare_what_they_keep_in_this_decoder() -> None:
    placement = AlternateAxes([ChannelRange(0.75, 0.875), ChannelRange(0.875, 1.0)])  # which RoPE leaves alone
    assert bound(PRoPE(placement)).symmetries.shift and shift(PRoPE(placement), HYBRID_HEAD) < EXACT


@pytest.mark.parametrize("name", HYBRID)
def test_it_acts_in_the_layers_that_it_names(name: str) -> None:
    """The controls: others are stock, bit for bit."""
    poses, K = random_cameras(2)
    encoding = HYBRID[name]()
    sequence = sequence_for(encoding, 3)
    outputs, stock = (Decoder(each, head=HYBRID_HEAD).attend(sequence, poses, K) for each in (encoding, None))
    moved = [not torch.equal(a, b) for a, b in zip(outputs, stock, strict=True)]
    assert moved == [not name.startswith("DeltaNet")] * LAYERS + ["DeltaNet" in name]
    assert from_stock(encoding, sequence, poses, K, HYBRID_HEAD) > MOVES


# ---- general matrices on queries and keys --------------------------------------------------------------------


class Unchecked(DeltaNetLayers):
    """A control: an encoding that the class refuses."""

    def __init__(self, encoding: CameraEncoding) -> None:
        super(DeltaNetLayers, self).__init__(encoding)
        self.head = None


def test_general_matrices_are_no_relative_poses_there_and_orthogonal_ones_are() -> None:
    """PRoPE's, GTA's and CaPE's on q and k, also with P^-T on keys as on queries, lose the world in Gated DeltaNet."""
    for make in (PRoPE, GTA, lambda *given, **options: CaPE(*given)):
        encoding = make(UnrotatedChannels(), apply_to="qk")
        assert world_views(encoding, HYBRID_HEAD) < EXACT  # in full attention the same are exact
        assert world_views(Unchecked(make(UnrotatedChannels(), apply_to="qk")), HYBRID_HEAD) > BROKEN
        with pytest.raises(
            InputError, match=f"{type(encoding).__name__} multiplies queries and keys by matrices .* vo"
        ):
            DeltaNetLayers(encoding)
    assert world_views(DeltaNetLayers(GTA(UnrotatedChannels(), "qk", "rotation")), HYBRID_HEAD) < EXACT
    with pytest.raises(InputError, match="PRoPE multiplies"):  # K is no rotation
        DeltaNetLayers(PRoPE(UnrotatedChannels(), pose_component="rotation"))
    DeltaNetLayers(RayEncoding(UnrotatedChannels(), pose_component="rotation"))


class Stretched(MatrixEncoding):
    """Of a user: rotations in another basis, which do not keep lengths."""

    def matrices(self, cameras: Cameras) -> Matrices:
        stretch = torch.diag(cameras.world_to_camera.new_tensor([3.0, 1.0, 1.0, 1.0]))
        V = stretch @ cameras.world_to_camera @ stretch.inverse()
        return {"q": V.mT, "k": V.inverse()}


class Turned(Stretched):
    """The same without the stretch."""

    keeps_rotations = True

    def matrices(self, cameras: Cameras) -> Matrices:
        return {"q": cameras.world_to_camera.mT, "k": cameras.world_to_camera.mT}


def test_matrices_of_a_class_count_as_orthogonal_only_where_it_states_so() -> None:
    for kind, is_exact in ((Stretched, False), (Turned, True)):
        options: dict[str, Any] = dict(placement=UnrotatedChannels(), apply_to="qk", pose_component="rotation")
        assert (world_views(Unchecked(kind(**options)), HYBRID_HEAD) < EXACT) == is_exact
        assert kind(**options).is_orthogonal == is_exact
        assert not kind(UnrotatedChannels(), "qk").is_orthogonal and kind(UnrotatedChannels(), "vo").is_orthogonal
    with pytest.raises(InputError, match="Stretched multiplies"):
        DeltaNetLayers(Stretched(UnrotatedChannels(), "qk", "rotation"))
    DeltaNetLayers(Turned(UnrotatedChannels(), "qk", "rotation"))


def test_keys_of_another_length_are_no_contraction() -> None:
    """Behind the norm, a matrix that stretches a key makes I - b k k^T expand: the state grows without bound."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 200, 1, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    beta, decay = torch.full((1, 200, 1), 0.9, dtype=torch.float64), torch.zeros(1, 200, 1, dtype=torch.float64)

    def rule(stretch: float) -> float:
        unit = (k * k).sum(-1, keepdim=True).sqrt()
        keys, state = stretch * (k / unit)[:, :, 0], v.new_zeros(1, 8, 8)
        for t in range(k.shape[1]):
            read = (state * keys[:, t, :, None]).sum(1)
            state = state + keys[:, t, :, None] * (beta[:, t] * (v[:, t, 0] - read))[:, None]
        return float(state.norm())

    assert rule(1.0) < 20 and rule(2.0) > 1e6
    assert delta_rule(q, k, v, beta, decay).isfinite().all()


def test_outputs_turn_back_before_the_norm() -> None:
    """The inverse on the output acts on what was read of the state, so relative poses alone enter; without it, not."""

    class Forward(EncodedLinearLayers):
        def at_linear_layer(self, layer: int, hidden_states: Tensor) -> EncodedCameras | None:
            acting = super().at_linear_layer(layer, hidden_states)
            assert acting is not None
            acting.transform_outputs = lambda o: o  # type: ignore[method-assign]
            return acting

    poses, K = random_cameras(2)
    encoding = DeltaNetLayers(PRoPE(UnrotatedChannels(), apply_to="vo", reference=None))
    Decoder(encoding, head=HYBRID_HEAD)
    sequence, other = random_sequence(0), random_cameras(2, 1, seed=5)[0]
    for kind, exact in ((EncodedLinearLayers, True), (Forward, False)):
        encoded = [encoding.encode(sequence.cameras(each, K), HYBRID_HEAD) for each in (poses, poses @ other)]
        for each in encoded:
            each.__class__ = kind
        a, b = (delta_net(each, LAYERS, sequence) for each in encoded)
        assert ((a - b).abs().max() < 1e-5) == exact


# ---- what is refused -----------------------------------------------------------------------------------------


def rotations(**options: Any) -> GTA:
    return GTA(UnrotatedChannels(), pose_component="rotation", **options)


REFUSED: list[tuple[Callable[[], CameraEncoding], str]] = [
    (lambda: DeltaNetLayers(PoseALiBi()), "PoseALiBi acts on no channels of a Gated DeltaNet head"),
    (lambda: DeltaNetLayers(ValueRoPE()), "ValueRoPE acts on no channels"),
    (lambda: DeltaNetLayers(PoseIndex()), "PoseIndex changes position ids, which all layers"),
    (lambda: DeltaNetLayers(PRoPE(ExtraChannels(), apply_to="vo")), "PRoPE acts on no channels"),
    (lambda: DeltaNetLayers(RayRoPE()), "RayRoPE turns keys anew for each view .* beside DeltaNetLayers"),
    (lambda: DeltaNetLayers(LayerSubset(URoPE())), "URoPE turns keys anew"),
    (lambda: DeltaNetLayers(PRoPE(TemporalSection(), apply_to="vo")), "a T section .* got 0"),
    (lambda: DeltaNetLayers(HeadSubset(rotations(), [0])), "leave HeadSubset out"),
    (
        lambda: DeltaNetLayers(LayerSubset(rotations(), [3])),
        r"\[3\] are no layers of linear_attention: choose of \[0, 1",
    ),
    (lambda: LayerSubset(rotations(), [0, 3]), r"layers \[0\] are no layers of full_attention: choose of \[3\]"),
    (lambda: LayerSubset(rotations(), "even"), "GTA acts in no layer"),
    (lambda: LayerSubset(DeltaNetLayers(rotations())), "LayerSubset around DeltaNetLayers has no effect"),
    (lambda: DeltaNetLayers(Compose([DeltaNetLayers(rotations())])), "DeltaNetLayers around DeltaNetLayers"),
    (lambda: PRoPE(UnrotatedChannels(200)), "rotates 32 of the 128 channels .* which leaves 96"),
    (lambda: UnrotatedChannels(6) and PRoPE(), "multiple of four, got 6"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda each: each if isinstance(each, str) else "")
def test_what_does_not_fit_is_an_error(make: Callable[[], CameraEncoding], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        SpatialVLM(TinyQwen35(), camera_encoding=make())


def test_a_decoder_of_one_kind_is_refused() -> None:
    with pytest.raises(InputError, match="no Gated DeltaNet layers"), torch.device("meta"):
        SpatialVLM(TinyQwen35(layers=1), camera_encoding=DeltaNetLayers(rotations()))
    for make, message in (
        (lambda: DeltaNetLayers(rotations()), "no Gated DeltaNet layers: take a Qwen3.5"),
        (lambda: PRoPE(UnrotatedChannels()), "rotates 32 of the 32 channels"),
    ):
        with pytest.raises(InputError, match=message), torch.device("meta"):
            SpatialVLM(camera_encoding=make())
    assert ChannelRange(0, 0.5).keeps_shift is False and HEAD_DIM > KV_HEADS
