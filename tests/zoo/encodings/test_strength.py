"""Learned strengths: the original model at 0, the encoding at 1, and the symmetries that hold at each strength."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict
from itertools import product

import pytest
import torch
from torch import nn

from tests.zoo.decoder import MOVES, Example, case, gradients, layout_of, logits, tiny_qwen
from zoo.backbones import Qwen25VLBackbone
from zoo.encodings import (
    GTA,
    AlternateAxes,
    CameraEncoding,
    CaPE,
    ChannelRange,
    Compose,
    ExtraChannels,
    FrequencyRange,
    HeadSubset,
    LayerSubset,
    LearnedStrength,
    MatrixEncoding,
    PoseALiBi,
    PRoPE,
    RayEncoding,
    TemporalSection,
    ValueRoPE,
)
from zoo.encodings.base import DecoderLayout
from zoo.encodings.testing import HEAD, PROPERTIES, Decoder, attend, effect, holds, random_cameras, sequence_for
from zoo.errors import InputError

ENCODINGS: dict[str, Callable[[], MatrixEncoding]] = {
    "PRoPE": lambda: PRoPE(FrequencyRange()),
    "PRoPE, TemporalSection": lambda: PRoPE(TemporalSection()),
    "PRoPE, ChannelRange, no reference": lambda: PRoPE(ChannelRange(), reference=None),
    "PRoPE, ExtraChannels": lambda: PRoPE(ExtraChannels(8)),
    "PRoPE, translation": lambda: PRoPE(TemporalSection(), pose_component="translation"),
    "GTA, rotation": lambda: GTA(TemporalSection(), pose_component="rotation"),
    "CaPE, scale rms": lambda: CaPE(scale="rms"),
    "RayEncoding": lambda: RayEncoding(TemporalSection()),
}
FEW = ("PRoPE", "GTA, rotation", "RayEncoding")  # at every strength in every run


class Fixed(LearnedStrength):
    """Strengths of given values, which are no parameters, so the reference decoder does not draw them anew."""

    def __init__(self, encoding: CameraEncoding, *values: float) -> None:
        super().__init__(encoding)
        self.values = values

    def bind_to_decoder(self, decoder: DecoderLayout, layers: Collection[int]) -> None:
        super().bind_to_decoder(decoder, layers)
        del self.strengths
        self.strengths = nn.Buffer(torch.tensor(self.values).expand(len(layers)).clone())


def outputs(encoding: CameraEncoding | None, like: CameraEncoding) -> torch.Tensor:
    return Decoder(encoding).attend(sequence_for(like, 3), *random_cameras(2))


@pytest.mark.parametrize(
    ("name", "strength"),
    [case(each == 0.5 or name in FEW, name, each) for name, each in product(ENCODINGS, (0.5, -0.3, 1.0))],
)
def test_symmetries_at_a_strength_are_measured(name: str, strength: float) -> None:
    """At 1 all of the encoding inside hold. Elsewhere those hold that the class declares, and no others."""

    def make() -> LearnedStrength:
        return Fixed(ENCODINGS[name](), strength)

    declared = ENCODINGS[name]().symmetries if strength == 1 else make().symmetries
    assert {each.__name__: holds(each.__name__, each(make(), HEAD)) for each in PROPERTIES} == asdict(declared)
    assert effect(make()) > MOVES


@pytest.mark.parametrize("name", [name for name in ENCODINGS if "Extra" not in name])
def test_at_zero_the_attention_is_the_original_one_bit_for_bit(name: str) -> None:
    encoding = ENCODINGS[name]()
    assert effect(Fixed(encoding, 0.0)) == 0 < MOVES < effect(Fixed(encoding, 1e-2))


@pytest.mark.parametrize("name", ENCODINGS)
def test_at_one_the_encoding_is_the_one_inside(name: str) -> None:
    encoding = ENCODINGS[name]()
    inside, one, half = (outputs(each, encoding) for each in (encoding, Fixed(encoding, 1.0), Fixed(encoding, 0.5)))
    torch.testing.assert_close(one, inside, rtol=0, atol=1e-12)
    assert (half - inside).abs().max() > MOVES


def test_between_the_cameras_are_powers() -> None:
    """The control changes the order: the powers of the poses of the world are others."""
    encoding = PRoPE(reference="middle", scale="max")
    sequence, a = sequence_for(encoding, 3), torch.tensor(0.4)
    given = sequence.cameras(*random_cameras(2))
    canonical = encoding.canonical(given).powers(a, a, a)
    other = encoding.canonical(given.powers(a, a, a))
    expected, control = (
        Decoder(PRoPE(reference=None)).attend(sequence, each.world_to_camera, each.K_normalized)
        for each in (canonical, other)
    )
    outputs = Decoder(Fixed(encoding, 0.4)).attend(sequence, *random_cameras(2))
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-12)
    assert (outputs - control).abs().max() > MOVES


def test_each_layer_and_head_has_the_strength_that_it_learns() -> None:
    encoding = PRoPE(FrequencyRange())
    stock, inside = outputs(None, encoding), outputs(encoding, encoding)
    first, last = (outputs(Fixed(encoding, *each), encoding) for each in ((1.0, 0.0), (0.0, 1.0)))
    assert torch.equal(first[1], stock[1]) and torch.equal(last[0], stock[0])
    torch.testing.assert_close(torch.stack((first[0], last[1])), inside, rtol=0, atol=1e-12)
    heads = outputs(HeadSubset(Fixed(encoding, 1.0), [1]), encoding)  # the last two of four
    torch.testing.assert_close(heads[..., :2, :], stock[..., :2, :], rtol=0, atol=1e-12)
    torch.testing.assert_close(heads[..., 2:, :], inside[..., 2:, :], rtol=0, atol=1e-12)
    axes = [FrequencyRange(), FrequencyRange(0.5, 1.0)]
    turns = PRoPE(AlternateAxes(axes))
    for layer, placement in enumerate(axes):
        expected = outputs(PRoPE(placement), turns)[layer]
        torch.testing.assert_close(outputs(Fixed(turns, 1.0), turns)[layer], expected, rtol=0, atol=1e-12)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: LearnedStrength(PRoPE(FrequencyRange())), 3),
        (lambda: LearnedStrength(RayEncoding(), start=0), 3),
        (lambda: LayerSubset(LearnedStrength(GTA(learn_scale=True)), "even"), 2),
        (lambda: Compose([ValueRoPE(), HeadSubset(LearnedStrength(CaPE()), [0])]), 3),
    ],
)
def test_a_model_starts_as_the_original_one_and_learns_each_strength(
    make: Callable[[], CameraEncoding], count: int
) -> None:
    model, encoding = tiny_qwen(), make()
    Qwen25VLBackbone(model, None).install_encoding(encoding)
    example = Example(encoding)
    (module,) = (each for each in encoding.modules() if isinstance(each, LearnedStrength))
    strengths = module.strengths
    assert strengths is not None and strengths.shape == (count,) and strengths.dtype == torch.float32
    if not isinstance(encoding, Compose):
        assert torch.equal(logits(model, example), logits(model, example, stock=True))
    before = logits(model, example).detach()
    gradients(model, example)
    assert strengths.grad is not None and (strengths.grad.abs() > 1e-4).all()
    learned = strengths.grad.clone()
    torch.optim.Adam([strengths], lr=1e-2).step()
    torch.testing.assert_close(strengths.detach(), -1e-2 * learned.sign(), rtol=1e-3, atol=0)
    assert (logits(model, example) - before).detach().abs().max() > MOVES
    gradients(model, example.identities())  # the control: identity cameras teach nothing, but for the frames of rays
    assert strengths.grad.any() == isinstance(module.encoding, RayEncoding)


@pytest.mark.parametrize(
    ("name", "start"),
    [case(each == 0.4 or name in FEW, name, each) for name, each in product(ENCODINGS, (0.0, 0.4, 1.0))],
)
def test_gradients_of_strengths_match_differences(name: str, start: float) -> None:
    encoding = LearnedStrength(ENCODINGS[name]())
    decoder, sequence = Decoder(encoding), sequence_for(encoding, 3)
    strengths, rope = encoding.strengths, decoder.rope(sequence.ids)
    assert strengths is not None
    nn.init.constant_(strengths, start)

    def loss() -> torch.Tensor:
        encoded = encoding.encode(sequence.cameras(*random_cameras(2)), HEAD, torch.float64)
        return torch.stack([attend(encoded, layer, sequence, rope) for layer in range(len(strengths))]).square().mean()

    (gradient,) = torch.autograd.grad(loss(), [strengths])
    with torch.no_grad():
        for layer, derivative in enumerate(gradient.tolist()):
            strengths[layer] += 1e-5
            above = loss()
            strengths[layer] -= 2e-5
            assert abs(derivative) > 1e-4
            assert float(above - loss()) / 2e-5 == pytest.approx(derivative, rel=1e-6)
            strengths[layer] += 1e-5


def test_start_is_the_strength_of_every_layer() -> None:
    encoding = LearnedStrength(PRoPE(), start=1)
    encoding.bind_to_decoder(layout_of(tiny_qwen()), [0, 2])
    assert encoding.strengths is not None and encoding.strengths.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("make", [PoseALiBi, ValueRoPE, lambda: LayerSubset(PRoPE())])
def test_an_encoding_without_matrices_of_its_own_is_refused(
    make: Callable[[], CameraEncoding],
) -> None:
    with pytest.raises(InputError, match=f"by matrices .*, not {type(make()).__name__}: put subsets .* around"):
        LearnedStrength(make())
