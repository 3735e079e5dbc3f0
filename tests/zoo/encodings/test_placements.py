"""Where a camera acts."""

from __future__ import annotations

import pytest
import torch

from zoo.encodings import Fraction, OnChannels, TSection


def test_a_fraction_is_a_range_of_neighbours() -> None:
    assert Fraction().channels(16, [2, 3, 3]) == list(range(8))
    assert Fraction(0.25, 0.75).channels(16, [2, 3, 3]) == list(range(4, 12))


def test_the_t_section_comes_in_whole_rope_pairs() -> None:
    assert TSection().channels(16, [2, 3, 3]) == [0, 1, 8, 9]
    channels = TSection().channels(128, [16, 24, 24])  # the released models
    assert sorted(channels) == [*range(16), *range(64, 80)]
    for group in range(0, 32, 4):
        a, b, c, d = channels[group : group + 4]
        assert (c, d) == (a + 64, b + 64)


@pytest.mark.parametrize("placement", [Fraction(), Fraction(0.5, 1.0), Fraction(0, 1), TSection()])
def test_a_view_in_groups_and_back(placement: OnChannels) -> None:
    block = placement.block(32, [4, 6, 6])
    x = torch.randn(2, 5, 3, 32, generator=torch.Generator().manual_seed(0))
    chosen = placement.channels(32, [4, 6, 6])
    groups = block.group(block.view(x))
    assert torch.equal(groups, x[..., chosen].unflatten(-1, (-1, 4)))
    assert torch.equal(block.ungroup(groups), block.view(x))
    written = x.clone()
    block.view(written).zero_()
    others = [c for c in range(32) if c not in chosen]
    assert torch.equal(written[..., others], x[..., others])
    assert not written[..., chosen].any()


def test_channels_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="channels 0 to 10 of 20 don't come in groups of four"):
        Fraction().block(20, [2, 4, 4])
    with pytest.raises(ValueError, match="0.5 to 0.5"):
        Fraction(0.5, 0.5)
    with pytest.raises(ValueError, match="even number of frequencies, got 3"):
        TSection().block(16, [3, 2, 3])
