"""What a stack declares of the world, by where its encodings act, is what is measured."""

from __future__ import annotations

import pytest

from tests.zoo.encodings.test_properties import BROKEN, EXACT, world_views
from zoo.encodings import (
    GTA,
    Alternate,
    CameraEncoding,
    Fraction,
    LowFrequencies,
    OnHeads,
    OnLayers,
    PRoPE,
    Stack,
    TSection,
    VORoPE,
)


@pytest.mark.parametrize(
    ("stack", "keeps_world"),
    [
        ([GTA(), VORoPE()], False),  # values turned by position come between the cameras
        ([VORoPE(), GTA()], True),
        ([OnLayers(VORoPE()), GTA()], True),
        ([Stack([VORoPE()]), GTA()], True),
        ([PRoPE(), GTA()], False),
        ([PRoPE(), PRoPE(TSection())], False),
        ([PRoPE(Fraction(0, 0.25)), GTA(Fraction(0.75, 1.0))], True),
        ([GTA(terms="vo"), OnLayers(GTA(terms="qk"))], True),
        ([GTA(Alternate([LowFrequencies(4, "w", tied=True), Fraction()])), OnHeads(GTA(), [0])], False),
    ],
)
def test_a_stack_keeps_the_world_where_its_encodings_do_not_meet(
    stack: list[CameraEncoding], keeps_world: bool
) -> None:
    encoding = Stack(stack)
    assert encoding.symmetries.world_views == keeps_world
    measured = world_views(encoding)
    assert measured < EXACT if keeps_world else measured > BROKEN
