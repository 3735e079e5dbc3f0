"""Placements, subsets and compositions: their channels, layers and heads, from configs, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jaxtyping
import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser

from tests.zoo.decoder import MOVES, Example, gradients, install, layout_of, moved, tiny_qwen
from zoo import SpatialVLM, TinyQwen25VL, TinyQwen35
from zoo.backbones import Qwen25VLBackbone
from zoo.cameras import Cameras
from zoo.encodings import (
    GTA,
    AlternateAxes,
    CameraEncoding,
    ChannelPlacement,
    ChannelRange,
    Compose,
    DeltaNetLayers,
    ExtraChannels,
    FrequencyRange,
    HeadSubset,
    HighFrequencies,
    LayerSubset,
    LowFrequencies,
    PointRoPE,
    PoseALiBi,
    PoseAxis,
    PoseIndex,
    PRoPE,
    RayEncoding,
    RayRoPE,
    TemporalSection,
    UnrotatedChannels,
    URoPE,
    ValueRoPE,
    ViewAttention,
)
from zoo.encodings.base import HeadLayout
from zoo.encodings.testing import Decoder, apply_rope, random_cameras, random_sequence
from zoo.errors import InputError
from zoo.sequences.time_index import PathLengthIndex

QWEN25, QWEN3 = HeadLayout.in_row(128, (16, 24, 24)), HeadLayout(128, (*[0, 1, 2] * 20, *[0] * 4))
TIME = [*range(0, 60, 3), *range(60, 64)]  # Qwen3-VL's sections take turns, and t has the rest at the end


@pytest.mark.parametrize(
    ("placement", "head", "channels"),
    [
        (ChannelRange(), HeadLayout.in_row(16, (2, 3, 3)), range(8)),
        (ChannelRange(0.25, 0.75), HeadLayout.in_row(16, (2, 3, 3)), range(4, 12)),
        (TemporalSection(), QWEN25, [*range(16), *range(64, 80)]),
        (LowFrequencies(4, "w"), QWEN25, [*range(60, 64), *range(124, 128)]),
        (HighFrequencies(8, "h"), QWEN25, [*range(16, 24), *range(80, 88)]),
        (LowFrequencies(8, "t"), QWEN25, [*range(8, 16), *range(72, 80)]),
        (TemporalSection(), QWEN3, [*TIME, *(c + 64 for c in TIME)]),
        (LowFrequencies(4, "w"), QWEN3, [50, 53, 56, 59, 114, 117, 120, 123]),
        (HighFrequencies(4, "h"), QWEN3, [1, 4, 7, 10, 65, 68, 71, 74]),
        (FrequencyRange(0, 0.25), QWEN25, TemporalSection().head_channels(QWEN25)),
        (FrequencyRange(), QWEN3, [*range(32), *range(64, 96)]),
        (FrequencyRange(0.5, 0.6), QWEN3, [*range(32, 40), *range(96, 104)]),  # 38.4 is rounded to 40
        (FrequencyRange(0.75, 1.0), HeadLayout(256, (0, 1) * 16), [*range(24, 32), *range(56, 64)]),
    ],
)
def test_channels_of_a_placement(placement: ChannelPlacement, head: HeadLayout, channels: list[int]) -> None:
    """A placement takes whole pairs of RoPE, which are half a head apart, from the model's table of axes."""
    assert sorted(placement.head_channels(head)) == list(channels)


def test_ranges_of_frequencies_turn_ever_slower_and_share_no_channel() -> None:
    """In Qwen3-VL a range has pairs of all axes, which the T section, the control, has not."""
    frequencies = 5e6 ** -(torch.arange(64) / 64)
    ends = [0.0, 0.1, 0.25, 0.7, 1.0]
    ranges = [FrequencyRange(*each).head_channels(QWEN3) for each in pairwise(ends)]
    assert sorted(sum(ranges, [])) == list(range(128))
    turned = [frequencies[torch.tensor(each) % 64] for each in ranges]
    assert all(above.min() > below.max() for above, below in pairwise(turned))
    placements = (FrequencyRange(0, 0.25), TemporalSection())
    axes = [{QWEN3.axes[channel % 64] for channel in each.head_channels(QWEN3)} for each in placements]
    assert axes == [{0, 1, 2}, {0}]


@pytest.mark.parametrize("lowest", [True, False])
def test_commutation_error_bounds_the_change_of_world(lowest: bool) -> None:
    """The bound holds for the bilinear form of q and k where frequencies are not shared."""
    placement = (LowFrequencies if lowest else HighFrequencies)(8, "w")
    encoding, section, positions = PRoPE(placement, reference=None), [4, 4, 8], 6
    frequencies = 1e4 ** -(torch.arange(16, dtype=torch.float64) / 16)
    poses, K = random_cameras(1, 2)
    world = random_cameras(1, 1, seed=5)[0]
    basis = torch.eye(32, dtype=torch.float64).expand(1, 2, 32, 32)  # one head per channel
    angle = torch.tensor([0, positions])[:, None] * frequencies.where(torch.arange(16) >= 8, 0.0)
    cos, sin = (torch.cat((x, x), -1)[None] for x in (angle.cos(), angle.sin()))
    products, norms = [], []
    for V in (poses, poses @ world):
        encoded = encoding.encode(
            Cameras(V, K, torch.tensor([[0, 1]])), HeadLayout.in_row(32, section), dtype=torch.float64
        )
        q, k = encoded.before_rope(basis, basis)
        norms.append(torch.linalg.matrix_norm(q[0, 0], 2) * torch.linalg.matrix_norm(k[0, 1], 2))
        q, k = apply_rope(q, (cos, sin)), apply_rope(k, (cos, sin))
        products.append(q[0, 0] @ k[0, 1].mT)
    moved = float(torch.linalg.matrix_norm(products[0] - products[1], 2))
    bound = (
        positions
        * placement.commutation_error(frequencies, HeadLayout.in_row(32, section))
        * float(norms[0] + norms[1])
    )
    assert 0.01 * bound < moved < bound


def test_shared_frequency_is_the_geometric_mean_of_four_pairs() -> None:
    placement, head = LowFrequencies(8, "w", shared_frequency=True), HeadLayout.in_row(32, [4, 4, 8])
    decoder = Decoder(PRoPE(placement))
    stock = Decoder(None).inv_freq
    assert placement.commutation_error(decoder.inv_freq, head) < 1e-9 < placement.commutation_error(stock, head)
    assert torch.equal(decoder.inv_freq[:8], stock[:8])
    torch.testing.assert_close(decoder.inv_freq[8:12].log(), stock[8:12].log().mean().expand(4), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "placement",
    [
        ChannelRange(),
        ChannelRange(0.5, 1.0),
        ChannelRange(0, 1),
        TemporalSection(),
        LowFrequencies(4, "h"),
        HighFrequencies(4, "w"),
        FrequencyRange(0.25, 0.75),
    ],
)
def test_matrices_act_only_on_the_placement(placement: ChannelPlacement) -> None:
    """Channels that another encoding appended stay unchanged too."""
    chosen = placement.head_channels(HeadLayout.in_row(32, (4, 6, 6)))
    x = torch.randn(2, 5, 3, 36, generator=torch.Generator().manual_seed(0))
    cameras = Cameras(torch.eye(4).expand(2, 1, 4, 4), torch.eye(3).expand(2, 1, 3, 3), torch.zeros(2, 5).long())
    doubled = placement.place(cameras, {"v": 2 * torch.eye(4).expand(2, 1, 4, 4)}, HeadLayout.in_row(32, (4, 6, 6)))
    expected = x.clone()
    expected[..., chosen] *= 2
    assert len(chosen) % 4 == 0 and torch.equal(doubled.transform_values(x), expected)


def test_other_layers_and_heads_are_stock() -> None:
    sequence = random_sequence(2)
    poses, K = random_cameras(2)
    stock = Decoder(None).attend(sequence, poses, K)
    layers = Decoder(LayerSubset(PRoPE(), "odd")).attend(sequence, poses, K)
    assert torch.equal(layers[0], stock[0]) and not torch.isclose(layers[1], stock[1]).all()
    for encoding in (PRoPE(), GTA(ExtraChannels(8))):
        heads = Decoder(HeadSubset(encoding, [1])).attend(sequence, poses, K)
        torch.testing.assert_close(heads[..., :2, :], stock[..., :2, :], rtol=0, atol=1e-12)
        assert ((heads - stock).abs().amax((0, 1, 2, 4))[2:] > 1e-3).all()


@pytest.mark.parametrize("name", ["PRoPE, ExtraChannels", "GTA, ExtraChannels", "HeadSubset(PRoPE, ExtraChannels)"])
def test_extra_channels_start_at_stock_and_train(name: str) -> None:
    model = tiny_qwen()
    encoding = install(model, name)
    example = Example(encoding)
    assert moved(model, example) > MOVES
    (append,) = (module for module in encoding.modules() if isinstance(module, ExtraChannels))
    append.bind_to_decoder(
        layout_of(model), range(model.config.text_config.num_hidden_layers)
    )  # reset to the initial values
    assert moved(model, example) < 1e-5
    optimizer = torch.optim.SGD(encoding.parameters(), lr=0.1)
    for _ in range(3):  # in the first step only o gets a gradient; with v also zero, nothing would
        optimizer.zero_grad()
        gradients(model, example)
        optimizer.step()
    assert moved(model, example) > MOVES
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoding.parameters())


@pytest.mark.parametrize(
    ("encoding", "layers"),
    [
        (LayerSubset(PRoPE(ExtraChannels(8)), "odd"), ["1"]),
        (LayerSubset(PRoPE(ExtraChannels(8)), [0, 2]), ["0", "2"]),
        (PRoPE(AlternateAxes([ExtraChannels(8), TemporalSection()])), ["0", "2"]),
    ],
)
def test_other_layers_have_no_projections(encoding: CameraEncoding, layers: list[str]) -> None:
    """Parameters without a gradient are an error in distributed training."""
    model = tiny_qwen()
    Qwen25VLBackbone(model, None).install_encoding(encoding)
    (append,) = (module for module in encoding.modules() if isinstance(module, ExtraChannels))
    assert append.layers is not None and list(append.layers) == layers
    for module in append.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight)
    for parameter in append.parameters():
        parameter.data = parameter + 0.1
    gradients(model, Example(encoding))
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoding.parameters())


def test_compositions_require_what_their_encodings_require() -> None:
    assert Compose([PoseALiBi(), PRoPE(TemporalSection())]).requires_constant_time
    index = PathLengthIndex()
    assert Compose([PoseIndex(index), PRoPE(TemporalSection(), apply_to="vo")]).time_index is index
    plain = Compose([HeadSubset(PRoPE(), [0])])
    assert not plain.requires_constant_time and plain.time_index is None


# ---- configs ---------------------------------------------------------------------------------------------------------


def build(config: dict[str, Any], base: type = CameraEncoding) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--module", type=base)
    return parser.instantiate(parser.parse_object({"module": config})).module


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def test_nested_encodings_from_a_config() -> None:
    sections = [part("LowFrequencies", count=4, section=section, shared_frequency=True) for section in "wh"]
    axes = part("AlternateAxes", placements=sections)
    index = part("zoo.PathLengthIndex", span=7)
    encodings = [
        part("LayerSubset", encoding=part("PRoPE", placement=axes, apply_to="qk", scale="rms"), layers="odd"),
        part("HeadSubset", encoding=part("GTA", learn_scale=True, reference=None), key_value_heads=[0, 1]),
        part("PoseIndex", index=index),
        part("PoseALiBi", slopes="learned"),
    ]
    layers, heads, posed, alibi = build(part("Compose", encodings=encodings)).parts
    (prope,), (gta,) = layers.parts, heads.parts
    assert [(each.section, each.shared_frequency) for each in prope.placement.each] == [("w", True), ("h", True)]
    assert (prope.apply_to, prope.scale, layers.layers) == ("qk", "rms", "odd")
    assert gta.log_scale is not None and gta.reference is None and heads.key_value_heads == [0, 1]
    assert posed.time_index.span == 7 and alibi.slopes == "learned"
    for wrong in (part("PRoPE", reference="last"), part("PRoPE", apply_to="q"), part("CaPE", apply_to="qkvo")):
        with pytest.raises(ArgumentError):
            build(wrong)


# ---- what is refused -------------------------------------------------------------------------------------------------


def rotations(**options: Any) -> GTA:
    return GTA(UnrotatedChannels(), pose_component="rotation", **options)


IN_ROW = HeadLayout.in_row(32, (6, 4, 6))
# by Python, where the types of options are not checked; each with a key word of the message
REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: ChannelRange().block(HeadLayout.in_row(20, (2, 4, 4))), "0 to 10 of 20 .* multiple of four"),
    (lambda: ChannelRange(0.5, 0.5), "0.5 and 0.5"),
    (lambda: FrequencyRange(0.5, 0.5), "FrequencyRange requires .* 0.5 and 0.5"),
    (lambda: FrequencyRange(0, 0.1).block(IN_ROW), "0 to 0.1 of 16 frequencies .* wider range"),
    (lambda: TemporalSection().block(IN_ROW), "T section .* got 6"),
    (lambda: LowFrequencies(6), "multiple of four, got 6"),
    (lambda: LowFrequencies(4, "x"), "section is one of"),
    (lambda: HighFrequencies(8, "h").block(IN_ROW), "h section has 4 frequencies, fewer than 8"),
    (lambda: ExtraChannels(6), "multiple of four, got 6"),
    (lambda: UnrotatedChannels(6), "multiple of four, got 6"),
    (lambda: AlternateAxes([TemporalSection()]), "at least two"),
    (lambda: Decoder(LayerSubset(PRoPE(), [2])), "layers 0 to 1"),
    (lambda: Decoder(HeadSubset(PRoPE(), [0, 2])), "key_value_heads 0 to 1"),
    (lambda: Decoder(LayerSubset(LayerSubset(PRoPE(), "odd"), "even")), "PRoPE acts in no layer"),
    (
        lambda: Decoder(LayerSubset(PRoPE(AlternateAxes([TemporalSection(), ExtraChannels(8)])), "even")),
        "ExtraChannels acts in no layer",
    ),
    (lambda: LayerSubset(PRoPE(), "all"), "layers is one of even, odd"),
    (lambda: LayerSubset(PoseIndex(), "odd"), "PoseIndex changes position ids"),
    (lambda: Compose([PRoPE(), GTA(ExtraChannels())]), "only the first encoding may use ExtraChannels"),
    (lambda: Compose([PoseIndex(), PoseIndex()]), "only one PoseIndex"),
    (lambda: Compose([PRoPE(TemporalSection()), PoseIndex()]), "one time for all views"),
    (lambda: Decoder(Compose([PRoPE(TemporalSection()), PoseAxis()])), "PRoPE and PoseAxis share"),
    (lambda: Decoder(Compose([LayerSubset(PoseAxis()), PRoPE(TemporalSection())])), "share"),
    (lambda: Decoder(PoseAxis(count=5)), "4 frequencies, fewer than 5"),
    (lambda: PoseAxis(count=0), "at least 1"),
    (lambda: PRoPE(apply_to="kq"), "apply_to is one of"),
    (lambda: PRoPE(pose_component="rotations"), "pose_component is one of"),
    (lambda: PointRoPE("ov"), "apply_to is one of"),
    (lambda: PointRoPE(shortest=4, longest=2), "wavelengths 4 and 2"),
    (lambda: PoseALiBi(slopes="learn"), "slopes is one of"),
    (lambda: GTA(translation_scale=0), "translation_scale must be positive"),
    (lambda: GTA(translation_scale=float("nan")), "translation_scale must be positive"),
    (lambda: GTA(pose_component="rotation", learn_scale=True), "learn_scale has no effect"),
    (lambda: GTA(pose_component="rotation", translation_scale=3), "translation_scale has no effect"),
    (lambda: PoseALiBi("rotation", translation_weight=2), "translation_weight has no effect"),
    (lambda: PoseALiBi("rotation", scale="rms"), "scale has no effect"),
    (lambda: RayRoPE("inf_pj+0_3d", depth="known"), "depth and predicts_width have no effect"),
    (lambda: RayRoPE("0_3d", predicts_width=False), "depth and predicts_width have no effect"),
    (lambda: RayRoPE("d_3d+inf_pj", depth_encoding="inv_d"), "depth_encoding has no effect"),
    (lambda: RayRoPE("0_3d", rays=1), "rays has no effect"),
    (lambda: Compose([RayRoPE(), PRoPE()]), "RayRoPE"),
    (lambda: Compose([PRoPE(apply_to="vo"), LayerSubset(URoPE())]), "leave out PRoPE"),
    (lambda: Compose([RayRoPE(), URoPE()]), "RayRoPE"),
    (lambda: HeadSubset(RayRoPE(), [0]), "RayRoPE"),
    (lambda: ViewAttention(32, 12), "head_dim=12"),
    (lambda: ViewAttention(36, 16), "head_dim=16"),
    (lambda: ViewAttention(32, 16, RayEncoding()), "RayEncoding has one per token"),
    (lambda: DeltaNetLayers(PRoPE(UnrotatedChannels(), pose_component="rotation")), "PRoPE multiplies"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_does_not_fit_is_refused(
    make: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((InputError, ValueError), match=message):
        make()


IN_MODELS: list[tuple[Any, Callable[[], CameraEncoding], str]] = [
    (TinyQwen25VL(hidden_size=32, heads=2), RayRoPE, "RayRoPE|channels"),
    (TinyQwen25VL(hidden_size=64, heads=2), lambda: RayRoPE(channels=ChannelRange(0, 1)), "channels"),
    (TinyQwen25VL(), lambda: DeltaNetLayers(rotations()), "no Gated DeltaNet layers"),
    (TinyQwen25VL(), lambda: PRoPE(UnrotatedChannels()), "rotates 32 of the 32 channels"),
    (TinyQwen35(layers=1), lambda: DeltaNetLayers(rotations()), "no Gated DeltaNet layers"),
    *(
        (TinyQwen35(), make, message)
        for make, message in (
            (lambda: DeltaNetLayers(PoseALiBi()), "PoseALiBi acts on no channels"),
            (lambda: DeltaNetLayers(ValueRoPE()), "ValueRoPE acts on no channels"),
            (lambda: DeltaNetLayers(PoseIndex()), "PoseIndex changes position ids"),
            (lambda: DeltaNetLayers(PRoPE(ExtraChannels(), apply_to="vo")), "PRoPE acts on no channels"),
            (lambda: DeltaNetLayers(RayRoPE()), "RayRoPE turns keys anew .* beside DeltaNetLayers"),
            (lambda: DeltaNetLayers(LayerSubset(URoPE())), "URoPE turns keys anew"),
            (lambda: DeltaNetLayers(PRoPE(TemporalSection(), apply_to="vo")), "a T section .* got 0"),
            (lambda: DeltaNetLayers(HeadSubset(rotations(), [0])), "leave HeadSubset out"),
            (lambda: DeltaNetLayers(LayerSubset(rotations(), [3])), "are no layers of linear_attention"),
            (lambda: LayerSubset(rotations(), [0, 3]), "are no layers of full_attention"),
            (lambda: LayerSubset(rotations(), "even"), "GTA acts in no layer"),
            (lambda: LayerSubset(DeltaNetLayers(rotations())), "LayerSubset around DeltaNetLayers"),
            (lambda: DeltaNetLayers(Compose([DeltaNetLayers(rotations())])), "DeltaNetLayers around DeltaNetLayers"),
            (lambda: PRoPE(UnrotatedChannels(200)), "32 of the 128 channels .* leaves 96"),
        )
    ),
]


@pytest.mark.parametrize(("loader", "make", "message"), IN_MODELS, ids=[each[-1] for each in IN_MODELS])
def test_what_does_not_fit_a_model_is_refused(loader: Any, make: Callable[[], CameraEncoding], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        SpatialVLM(loader, camera_encoding=make())
