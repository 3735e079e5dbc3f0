"""What a stack declares of the world, by where its encodings act, is what is measured."""

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
    ("stack", "keeps_world"),
    [
        ([GTA(), ValueRoPE()], False),  # values turned by position come between the cameras
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
def test_a_stack_keeps_the_world_where_its_encodings_do_not_meet(
    stack: list[CameraEncoding], keeps_world: bool
) -> None:
    encoding = Compose(stack)
    assert encoding.symmetries.world_views == keeps_world
    measured = world_views(encoding)
    assert measured < EXACT if keeps_world else measured > BROKEN
