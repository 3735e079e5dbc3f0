"""PoseIndex: only the time of the position ids changes."""

from __future__ import annotations

import pytest
import torch

from tests.zoo.decoder import MOVES, Example, logits, moved, tiny_model
from zoo.encodings import (
    Compose,
    EncodedCameras,
    PoseALiBi,
    PoseIndex,
    PRoPE,
    TemporalSection,
)
from zoo.errors import InputError
from zoo.sequences.time_index import PathLengthIndex, PoseDistanceIndex


@pytest.mark.parametrize(
    "index", [PoseDistanceIndex(span=9), PathLengthIndex("rotation", span=20), PoseDistanceIndex(reference="medoid")]
)
@torch.no_grad()
def test_changes_only_the_time_of_visual_tokens(index: PoseDistanceIndex | PathLengthIndex) -> None:
    encoding = PoseIndex(index)
    assert encoding.time_index is index and not encoding.requires_constant_time
    example = Example(encoding)
    posed, stock = (example.positions(stock)[0] for stock in (False, True))
    before = (example.index >= 0).cumsum(1) == 0
    assert torch.equal(posed[:, before], stock[:, before])
    visual = example.index[0] >= 0
    assert torch.equal(posed[1:, 0, visual], stock[1:, 0, visual])
    assert not torch.equal(posed[0, 0, visual], stock[0, 0, visual])
    t = posed[0, 0, visual]
    assert int(t.max() - t.min()) == index.span


@torch.no_grad()
def test_attention_is_stock_but_logits_depend_on_poses() -> None:
    model, example = tiny_model(), Example(PoseIndex())
    posed = logits(model, example)
    assert torch.equal(model(**example.inputs(model)).logits[example.attention_mask.bool()], posed)
    encoded = example.encoded()
    assert type(encoded) is EncodedCameras and encoded.for_decode_step() is None
    assert moved(model, example) > MOVES
    example.poses = example.poses.flip(1)
    assert (posed - logits(model, example)).abs().max() > MOVES


def test_one_time_index_in_a_composition() -> None:
    index = PathLengthIndex()
    assert Compose([PRoPE(), PoseIndex(index)]).time_index is index
    assert Compose([PRoPE(), PoseALiBi()]).time_index is None
    with pytest.raises(InputError, match="only one PoseIndex"):
        Compose([PoseIndex(), PoseIndex()])
    with pytest.raises(InputError, match="requires one time for all views"):
        Compose([PRoPE(TemporalSection()), PoseIndex()])
