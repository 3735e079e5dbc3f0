"""Encodings and time indices built from class names and arguments in a config."""

from __future__ import annotations

from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from zoo.encodings import (
    GTA,
    AlternateAxes,
    CameraEncoding,
    CaPE,
    Compose,
    HeadSubset,
    LayerSubset,
    LowFrequencies,
    PointRoPE,
    PoseALiBi,
    PoseIndex,
    PRoPE,
    RayEncoding,
    TemporalSection,
    ValueRoPE,
)
from zoo.sequences.time_index import FrameNumberIndex, PathLengthIndex, PoseDistanceIndex, TimeIndex


def build(config: dict[str, Any], base: type = CameraEncoding) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--module", type=base)
    return parser.instantiate(parser.parse_object({"module": config})).module


def part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": arguments}


def test_one_encoding() -> None:
    prope = build(part("PRoPE", placement=part("TemporalSection"), apply_to="qk", reference="medoid", scale="rms"))
    assert isinstance(prope, PRoPE) and isinstance(prope.placement, TemporalSection)
    assert (prope.apply_to, prope.pose_component, prope.reference, prope.scale) == ("qk", "both", "medoid", "rms")
    gta = build(part("GTA", learn_scale=True, translation_scale=0.5, pose_component="both", reference=None))
    assert isinstance(gta, GTA) and gta.log_scale is not None and gta.reference is None
    cape = build(part("CaPE", placement=part("ExtraChannels", channels=16), scale="max"))
    assert isinstance(cape, CaPE) and (cape.apply_to, cape.scale) == ("qk", "max")


def test_nested_encodings() -> None:
    sections = [part("LowFrequencies", count=4, section=section, shared_frequency=True) for section in "wh"]
    turns = build(part("PRoPE", placement=part("AlternateAxes", placements=sections)))
    assert isinstance(turns, PRoPE) and isinstance(turns.placement, AlternateAxes)
    assert [(type(each), each.section, each.shared_frequency) for each in turns.placement.each] == [
        (LowFrequencies, "w", True),
        (LowFrequencies, "h", True),
    ]
    stack = build(
        part(
            "Compose",
            encodings=[
                part("LayerSubset", encoding=part("PRoPE"), layers="odd"),
                part("HeadSubset", encoding=part("GTA"), key_value_heads=[0, 1]),
                part("PoseALiBi"),
            ],
        )
    )
    assert isinstance(stack, Compose)
    layers, heads, _ = stack.parts
    assert isinstance(layers, LayerSubset) and isinstance(heads, HeadSubset) and heads.key_value_heads == [0, 1]


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (part("PoseALiBi", measure="log", scale="rms"), PoseALiBi),
        (part("PoseALiBi", slopes="learned"), PoseALiBi),
        (part("PointRoPE", apply_to="qkvo", reference="middle"), PointRoPE),
        (part("ValueRoPE"), ValueRoPE),
        (part("RayEncoding", placement=part("TemporalSection"), scale="mean"), RayEncoding),
        (part("PoseIndex", index=part("zoo.sequences.time_index.PathLengthIndex", span=7)), PoseIndex),
        (part("zoo.sequences.time_index.FrameNumberIndex", span=5), FrameNumberIndex),
        (part("zoo.sequences.time_index.PoseDistanceIndex", reference="medoid"), PoseDistanceIndex),
        (part("zoo.sequences.time_index.PathLengthIndex"), PathLengthIndex),
    ],
)
def test_other_encodings_and_time_indices(config: dict[str, Any], kind: type) -> None:
    base = TimeIndex if issubclass(kind, TimeIndex) else CameraEncoding
    assert type(build(config, base)) is kind


def test_unknown_arguments_raise() -> None:
    for wrong in (part("PRoPE", reference="last"), part("PRoPE", apply_to="q"), part("CaPE", apply_to="qkvo")):
        with pytest.raises(ArgumentError):
            build(wrong)
