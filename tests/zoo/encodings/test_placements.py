"""Placements, subsets and compositions: their channels, layers and heads, and errors."""

from __future__ import annotations

import re
from collections.abc import Callable

import jaxtyping
import pytest
import torch

from tests.zoo.decoder import MOVES, Example, gradients, install, layout_of, moved, tiny_model
from zoo.backbones import Qwen25VLBackbone
from zoo.cameras import Cameras
from zoo.encodings import (
    GTA,
    AlternateAxes,
    CameraEncoding,
    ChannelPlacement,
    ChannelRange,
    Compose,
    ExtraChannels,
    HeadSubset,
    HighFrequencies,
    LayerSubset,
    LowFrequencies,
    PointRoPE,
    PoseALiBi,
    PoseIndex,
    PRoPE,
    RayRoPE,
    TemporalSection,
)
from zoo.encodings.base import HeadLayout
from zoo.encodings.testing import (
    EXACT,
    LAYOUTS,
    Decoder,
    apply_rope,
    random_cameras,
    random_sequence,
)
from zoo.errors import InputError


def test_channel_range_is_a_fraction_of_the_head() -> None:
    assert ChannelRange().head_channels(HeadLayout.in_row(16, (2, 3, 3))) == list(range(8))
    assert ChannelRange(0.25, 0.75).head_channels(HeadLayout.in_row(16, (2, 3, 3))) == list(range(4, 12))


def test_temporal_section_contains_whole_rope_pairs() -> None:
    assert TemporalSection().head_channels(HeadLayout.in_row(32, (4, 4, 8))) == [0, 1, 2, 3, 16, 17, 18, 19]
    channels = TemporalSection().head_channels(HeadLayout.in_row(128, (16, 24, 24)))
    assert channels == [*range(16), *range(64, 80)]


def test_frequencies_are_rope_pairs_of_one_section() -> None:
    section = (16, 24, 24)
    assert sorted(LowFrequencies(4, "w").head_channels(HeadLayout.in_row(128, section))) == [
        *range(60, 64),
        *range(124, 128),
    ]
    assert sorted(HighFrequencies(8, "h").head_channels(HeadLayout.in_row(128, section))) == [
        *range(16, 24),
        *range(80, 88),
    ]
    channels = LowFrequencies(8, "t").head_channels(HeadLayout.in_row(128, section))
    assert channels == [*range(8, 12), *range(12, 16), *range(72, 76), *range(76, 80)]


def test_sections_follow_the_table_of_axes() -> None:
    """Qwen3-VL's sections of 24, 20 and 20 frequencies take turns; t has the rest at the end."""
    head = HeadLayout(128, (*[0, 1, 2] * 20, *[0] * 4))
    time = [*range(0, 60, 3), *range(60, 64)]
    assert [len(head.frequencies(axis)) for axis in range(3)] == [24, 20, 20]
    assert TemporalSection().head_channels(head) == [*time, *(c + 64 for c in time)]
    assert LowFrequencies(4, "w").head_channels(head) == [50, 53, 56, 59, 114, 117, 120, 123]
    assert HighFrequencies(4, "h").head_channels(head) == [1, 4, 7, 10, 65, 68, 71, 74]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_table_of_another_model_breaks_the_change_of_world(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels of the T section are without RoPE among the views, where the table is that of the decoder's RoPE."""
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


@pytest.mark.parametrize("lowest", [True, False])
def test_commutation_error_bounds_the_change_of_world(lowest: bool) -> None:
    """Of the bilinear form of q and k, for frequencies that are not shared."""
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
    ],
)
def test_matrices_act_only_on_the_placement(placement: ChannelPlacement) -> None:
    """Also beside channels that another encoding appended."""
    chosen = placement.head_channels(HeadLayout.in_row(32, (4, 6, 6)))
    x = torch.randn(2, 5, 3, 36, generator=torch.Generator().manual_seed(0))
    cameras = Cameras(torch.eye(4).expand(2, 1, 4, 4), torch.eye(3).expand(2, 1, 3, 3), torch.zeros(2, 5).long())
    doubled = placement.place(cameras, {"v": 2 * torch.eye(4).expand(2, 1, 4, 4)}, HeadLayout.in_row(32, (4, 6, 6)))
    expected = x.clone()
    expected[..., chosen] *= 2
    assert len(chosen) % 4 == 0 and torch.equal(doubled.transform_values(x), expected)


def test_placements_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match="channels 0 to 10 of 20 are not a multiple of four"):
        ChannelRange().block(HeadLayout.in_row(20, (2, 4, 4)))
    with pytest.raises(ValueError, match="got 0.5 and 0.5"):
        ChannelRange(0.5, 0.5)
    with pytest.raises(ValueError, match="requires a T section with a multiple of four frequencies, got 6"):
        TemporalSection().block(HeadLayout.in_row(32, (6, 4, 6)))
    with pytest.raises(ValueError, match="frequencies must be a multiple of four, got 6"):
        LowFrequencies(6)
    with pytest.raises(ValueError, match="h section has 6 frequencies, fewer than 8"):
        HighFrequencies(8, "h").block(HeadLayout.in_row(32, (4, 6, 6)))
    with pytest.raises(ValueError, match="extra channels must be a multiple of four, got 6"):
        ExtraChannels(6)
    with pytest.raises(ValueError, match="at least two placements, got 1"):
        AlternateAxes([TemporalSection()])


def test_subsets_and_compositions_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match=r"layers 0 to 1, got \[2\]"):
        Decoder(LayerSubset(PRoPE(), [2]))
    with pytest.raises(ValueError, match=r"key_value_heads 0 to 1, got \[0, 2\]"):
        Decoder(HeadSubset(PRoPE(), [0, 2]))
    with pytest.raises(ValueError, match="PRoPE acts in no layer"):
        Decoder(LayerSubset(LayerSubset(PRoPE(), "odd"), "even"))
    with pytest.raises(ValueError, match="ExtraChannels acts in no layer"):
        Decoder(LayerSubset(PRoPE(AlternateAxes([TemporalSection(), ExtraChannels(8)])), "even"))
    with pytest.raises(ValueError, match="only the first encoding may use ExtraChannels"):
        Compose([PRoPE(), GTA(ExtraChannels())])
    with pytest.raises(ValueError, match="PoseIndex changes position ids"):
        LayerSubset(PoseIndex(), "odd")
    with pytest.raises(ValueError, match="positive, got 0"):
        GTA(translation_scale=0)


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
    model = tiny_model()
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
    model = tiny_model()
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


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PRoPE(apply_to="kq"), "apply_to is one of qkvo, qk, vo, not 'kq'"),
        (
            lambda: PRoPE(pose_component="rotations"),
            "pose_component is one of both, rotation, translation, not 'rotations'",
        ),
        (lambda: PointRoPE("ov"), "apply_to is one of"),
        (lambda: PoseALiBi(slopes="learn"), "slopes is one of fixed, learned, not 'learn'"),
        (lambda: LayerSubset(PRoPE(), "all"), "layers is one of even, odd, not 'all'"),
        (lambda: LowFrequencies(4, "x"), "section is one of t, h, w, not 'x'"),
        (lambda: GTA(pose_component="rotation", learn_scale=True), "learn_scale has no effect"),
        (lambda: GTA(pose_component="rotation", translation_scale=3), "translation_scale has no effect"),
        (lambda: PoseALiBi("rotation", translation_weight=2), "translation_weight has no effect"),
        (lambda: PoseALiBi("rotation", scale="rms"), "scale has no effect"),
        (lambda: RayRoPE("inf_pj+0_3d", depth="known"), "depth and predicts_width have no effect"),
        (lambda: RayRoPE("0_3d", predicts_width=False), "depth and predicts_width have no effect"),
        (lambda: RayRoPE("d_3d+inf_pj", depth_encoding="inv_d"), "depth_encoding has no effect"),
        (lambda: RayRoPE("0_3d", rays=1), "rays has no effect"),
        (lambda: GTA(translation_scale=float("nan")), "translation_scale must be positive, got nan"),
    ],
)
def test_unknown_choices_raise(build: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python; the command line checks types itself."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=re.escape(message)):
        build()


def test_compositions_require_what_their_encodings_require() -> None:
    assert Compose([PoseALiBi(), PRoPE(TemporalSection())]).requires_constant_time
    assert Compose([PoseIndex(), PRoPE(TemporalSection(), apply_to="vo")]).time_index is not None
    plain = Compose([HeadSubset(PRoPE(), [0])])
    assert not plain.requires_constant_time and plain.time_index is None
