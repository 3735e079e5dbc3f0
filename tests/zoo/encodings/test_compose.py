"""World invariance of compositions, declared from the channels of their encodings, against measurements."""

from __future__ import annotations

import pytest

from tests.zoo.encodings.test_properties import BROKEN, EXACT, world_views
from zoo.encodings import (
    GTA,
    AlternateAxes,
    CameraEncoding,
    ChannelRange,
    Compose,
    HeadSubset,
    LayerSubset,
    LowFrequencies,
    PRoPE,
    TemporalSection,
    ValueRoPE,
)


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
        (
            [
                GTA(AlternateAxes([LowFrequencies(4, "w", shared_frequency=True), ChannelRange()])),
                HeadSubset(GTA(), [0]),
            ],
            False,
        ),
    ],
)
def test_world_invariance_is_lost_where_encodings_overlap(encodings: list[CameraEncoding], keeps_world: bool) -> None:
    encoding = Compose(encodings)
    assert encoding.symmetries.world_views == keeps_world
    measured = world_views(encoding)
    assert measured < EXACT if keeps_world else measured > BROKEN
