"""The combinations of encodings in whole models: variants of a class, or of where it acts, are slow tests.

All of them are measured by the properties of encodings (test_properties.py).
"""

from __future__ import annotations

import pytest

from docs.symmetries import COMBINATIONS

VARIANTS = {
    *("PRoPE, LowFrequencies shared", "PRoPE, HighFrequencies", "PRoPE, ChannelRange, vo", "PRoPE, LowFrequencies, vo"),
    *("PRoPE, TemporalSection, qk", "PRoPE, TemporalSection, rotation", "PRoPE, TemporalSection, translation"),
    *("PRoPE, TemporalSection, scale rms", "PRoPE, TemporalSection, saddle_balanced", "GTA, ChannelRange"),
    *("PRoPE, TemporalSection, no reference", "GTA, TemporalSection", "GTA, TemporalSection, vo", "GTA, ExtraChannels"),
    *("GTA, TemporalSection, rotation", "CaPE, TemporalSection", "RayEncoding, TemporalSection, translation"),
    *("PoseALiBi, rotation", "PoseIndex, PathLengthIndex", "PoseAxis, 2 lowest, PathLengthIndex rotation"),
    *("PointRoPE", "RayRoPE, known depth, one ray, qk, ChannelRange, scale rms", "HeadSubset(PRoPE, ExtraChannels)"),
    *("Compose(PRoPE TemporalSection, PoseALiBi)", "Compose(ValueRoPE, GTA TemporalSection)"),
    *("Compose(ValueRoPE, GTA TemporalSection qk)", "Compose(GTA TemporalSection, PRoPE TemporalSection)"),
    "Compose(GTA TemporalSection qk, PRoPE TemporalSection vo)",
}
assert COMBINATIONS.keys() > VARIANTS, VARIANTS - COMBINATIONS.keys()
# the same encoding in other channels, or with other options
REPEATED = {"PRoPE, LowFrequencies", "PRoPE, HighFrequencies shared", "PRoPE, TemporalSection", "PoseALiBi"}
# or of several encodings, such as Compose(...), or in some heads or layers
COMBINED = {name for name in COMBINATIONS if name.endswith(")")}
OTHERS = VARIANTS | REPEATED | COMBINED
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in VARIANTS else ()) for name in COMBINATIONS]
FEWER_NAMES = [pytest.param(name, marks=pytest.mark.slow if name in OTHERS else ()) for name in COMBINATIONS]
