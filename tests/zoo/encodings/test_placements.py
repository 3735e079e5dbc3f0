"""Where a camera acts."""

from __future__ import annotations

import re
from collections.abc import Callable

import jaxtyping
import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from tests.zoo.decoder import MOVES, Example, gradients, install, moved, tiny_model
from tests.zoo.encodings.attention import Decoder, random_cameras, random_sequence
from zoo.attention import install_camera_attention
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
    TemporalSection,
)
from zoo.errors import InputError


def test_a_fraction_is_a_range_of_neighbors() -> None:
    assert ChannelRange().head_channels(16, [2, 3, 3]) == list(range(8))
    assert ChannelRange(0.25, 0.75).head_channels(16, [2, 3, 3]) == list(range(4, 12))


def test_the_t_section_comes_in_whole_rope_pairs() -> None:
    assert TemporalSection().head_channels(32, [4, 4, 8]) == [0, 1, 2, 3, 16, 17, 18, 19]
    channels = TemporalSection().head_channels(128, [16, 24, 24])  # the released models
    assert channels == [*range(16), *range(64, 80)]


def test_frequencies_are_of_one_section_on_the_same_pairs() -> None:
    section = [16, 24, 24]  # the released models
    assert sorted(LowFrequencies(4, "w").head_channels(128, section)) == [*range(60, 64), *range(124, 128)]
    assert sorted(HighFrequencies(8, "h").head_channels(128, section)) == [*range(16, 24), *range(80, 88)]
    channels = LowFrequencies(8, "t").head_channels(128, section)
    assert channels == [*range(8, 12), *range(12, 16), *range(72, 76), *range(76, 80)]


@pytest.mark.parametrize("lowest", [True, False])
def test_untied_frequencies_are_as_near_to_exact_as_declared(lowest: bool) -> None:
    """A change of world moves what q and k see of each other by at most twice that error, times the matrices."""
    placement = (LowFrequencies if lowest else HighFrequencies)(8, "w")
    encoding, section, positions = PRoPE(placement, reference=None), [4, 4, 8], 6
    frequencies = 1e4 ** -(torch.arange(16, dtype=torch.float64) / 16)
    poses, K = random_cameras(1, 2)
    world = random_cameras(1, 1, seed=5)[0]
    basis = torch.eye(32, dtype=torch.float64).expand(1, 2, 32, 32)  # a head for each channel
    angle = torch.tensor([0, positions])[:, None] * frequencies.where(torch.arange(16) >= 8, 0.0)
    cos, sin = (torch.cat((x, x), -1)[None] for x in (angle.cos(), angle.sin()))
    seen, sizes = [], []
    for V in (poses, poses @ world):
        encoded = encoding.encode(
            Cameras(V, K, torch.tensor([[0, 1]])), head_dim=32, mrope_section=section, dtype=torch.float64
        )
        q, k = (x.transpose(1, 2) for x in encoded.before_rope(basis, basis))
        sizes.append(torch.linalg.matrix_norm(q[0, :, 0], 2) * torch.linalg.matrix_norm(k[0, :, 1], 2))
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        seen.append(q[0, :, 0] @ k[0, :, 1].mT)
    moved = float(torch.linalg.matrix_norm(seen[0] - seen[1], 2))
    bound = positions * placement.commutation_error(frequencies, section) * float(sizes[0] + sizes[1])
    assert 0.01 * bound < moved < bound


def test_tied_frequencies_are_one_for_each_four_pairs() -> None:
    placement, section = LowFrequencies(8, "w", shared_frequency=True), [4, 4, 8]
    decoder = Decoder(PRoPE(placement))
    stock = Decoder(None).inv_freq
    assert placement.commutation_error(decoder.inv_freq, section) < 1e-9 < placement.commutation_error(stock, section)
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
def test_matrices_act_on_these_channels_alone(placement: ChannelPlacement) -> None:
    """Also where others have appended channels."""
    chosen = placement.head_channels(32, [4, 6, 6])
    x = torch.randn(2, 5, 3, 36, generator=torch.Generator().manual_seed(0))
    doubled = placement.place(
        torch.zeros(2, 5, dtype=torch.long), {"v": 2 * torch.eye(4).expand(2, 1, 4, 4)}, 32, [4, 6, 6]
    )
    expected = x.clone()
    expected[..., chosen] *= 2
    assert len(chosen) % 4 == 0 and torch.equal(doubled.transform_values(x), expected)


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="channels 0 to 10 of 20 don't come in groups of four"):
        ChannelRange().block(20, [2, 4, 4])
    with pytest.raises(ValueError, match="0.5 to 0.5"):
        ChannelRange(0.5, 0.5)
    with pytest.raises(ValueError, match="T section, which has 6"):
        TemporalSection().block(32, [6, 4, 6])
    with pytest.raises(ValueError, match="multiple of four, not 6"):
        LowFrequencies(6)
    with pytest.raises(ValueError, match="h section has 6 frequencies, fewer than 8"):
        HighFrequencies(8, "h").block(32, [4, 6, 6])
    with pytest.raises(ValueError, match="groups of four, not 6"):
        ExtraChannels(6)
    with pytest.raises(ValueError, match="two or more, not 1"):
        AlternateAxes([TemporalSection()])


def test_layers_heads_and_stacks_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"layers 0 to 1, not \[2\]"):
        Decoder(LayerSubset(PRoPE(), [2]))
    with pytest.raises(ValueError, match=r"key_value_heads 0 to 1, not \[0, 2\]"):
        Decoder(HeadSubset(PRoPE(), [0, 2]))
    with pytest.raises(ValueError, match="no layer is left for PRoPE to act in"):
        Decoder(LayerSubset(LayerSubset(PRoPE(), "odd"), "even"))
    with pytest.raises(ValueError, match="no layer is left for ExtraChannels to act in"):
        Decoder(LayerSubset(PRoPE(AlternateAxes([TemporalSection(), ExtraChannels(8)])), "even"))
    with pytest.raises(ValueError, match="comes first in a Compose"):
        Compose([PRoPE(), GTA(ExtraChannels())])
    with pytest.raises(ValueError, match="PoseIndex acts on position ids"):
        LayerSubset(PoseIndex(), "odd")
    with pytest.raises(ValueError, match="one time"):
        Compose([PoseIndex(), PoseIndex()])
    with pytest.raises(ValueError, match="positive, not 0"):
        GTA(translation_scale=0)


def test_only_the_chosen_layers_and_heads_are_touched() -> None:
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
def test_appended_channels_start_at_the_stock_model_and_can_learn(name: str) -> None:
    model = tiny_model()
    encoding = install(model, name)
    example = Example(encoding)
    assert moved(model, example) > MOVES
    (append,) = (module for module in encoding.modules() if isinstance(module, ExtraChannels))
    append.bind_to_decoder(
        model.model.language_model, range(model.config.text_config.num_hidden_layers)
    )  # as it starts
    assert moved(model, example) < 1e-5
    optimizer = torch.optim.SGD(encoding.parameters(), lr=0.1)
    for _ in range(3):  # only o learns in the first step, and nothing would if v, or o and v, were zero
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
def test_layers_that_append_nothing_have_no_projections(encoding: CameraEncoding, layers: list[str]) -> None:
    """Nothing would train them, which distributed training refuses."""
    model = tiny_model()
    install_camera_attention(model.model.language_model, encoding)
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
        (lambda: PRoPE(reference="last"), "reference is one of first, middle, medoid, saddle_balanced, not 'last'"),
        (lambda: PRoPE(scale="meters"), "scale is one of none, mean, max, rms, median_depth, not 'meters'"),
        (lambda: PointRoPE("ov"), "apply_to is one of"),
        (lambda: PoseALiBi("angle"), "measure is one of"),
        (lambda: PoseALiBi(slopes="learn"), "slopes is one of fixed, learned, not 'learn'"),
        (lambda: LayerSubset(PRoPE(), "all"), "layers is one of even, odd, not 'all'"),
        (lambda: LowFrequencies(4, "x"), "section is one of t, h, w, not 'x'"),
        (lambda: GTA(pose_component="rotation", learn_scale=True), "learn_scale has nothing to learn"),
        (lambda: GTA(translation_scale=float("nan")), "translation_scale must be positive, not nan"),
    ],
)
def test_choices_that_there_are_not(build: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python, where no type checker looks; the command line has one."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=re.escape(message)):
        build()


def test_wrappers_ask_for_what_they_wrap() -> None:
    assert Compose([PoseALiBi(), PRoPE(TemporalSection())]).requires_constant_time
    assert Compose([PoseIndex(), PRoPE(TemporalSection(), apply_to="vo")]).time_index is not None
    with pytest.raises(InputError, match="needs one time for all: give that encoding another placement"):
        Compose([PoseIndex(), PRoPE(TemporalSection())])
    plain = Compose([HeadSubset(PRoPE(), [0])])
    assert not plain.requires_constant_time and plain.time_index is None
