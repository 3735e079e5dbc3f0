"""Encodings built from class names and arguments in a config."""

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
    PRoPE,
    TemporalSection,
)


def build(config: dict[str, Any]) -> CameraEncoding:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--encoding", type=CameraEncoding)
    return parser.instantiate(parser.parse_object({"encoding": config})).encoding


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
    layers, heads, _ = stack.each
    assert isinstance(layers, LayerSubset) and isinstance(heads, HeadSubset) and heads.key_value_heads == [0, 1]


def test_unknown_arguments_raise() -> None:
    for wrong in (part("PRoPE", reference="last"), part("PRoPE", apply_to="q"), part("CaPE", apply_to="qkvo")):
        with pytest.raises(ArgumentError):
            build(wrong)
