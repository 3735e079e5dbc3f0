"""Update the tables of docs/encodings.md: encodings with placements, and their exact symmetries.

    python -m docs.symmetries

The property tests measure the declared symmetries of the same `COMBINATIONS` and `VIEW_MIXERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from evaluation.table import markdown_table
from timings.tables import filled, markdown
from zoo.encodings import GTA, CaPE, PRoPE
from zoo.encodings.alibi import PoseALiBi
from zoo.encodings.base import CameraEncoding, DecoderLayout, HeadLayout, Symmetries, ViewMixer, ViewSymmetries
from zoo.encodings.compose import Compose, DeltaNetLayers, HeadSubset, LayerSubset, LearnedStrength
from zoo.encodings.placements import (
    AlternateAxes,
    ChannelRange,
    ExtraChannels,
    FrequencyRange,
    HighFrequencies,
    LowFrequencies,
    Section,
    TemporalSection,
    UnrotatedChannels,
)
from zoo.encodings.prope import RayEncoding
from zoo.encodings.rayrope import RayRoPE
from zoo.encodings.rotary import Choice, PointRoPE, PoseAxis, PoseIndex, ValueRoPE
from zoo.encodings.testing import ONE_AXIS, hybrid_layout
from zoo.encodings.urope import URoPE
from zoo.encodings.view_mixers import PoseEmbedding, RayAttention, RayEmbedding, ViewAttention
from zoo.errors import InputError
from zoo.model_spec import choose_time_index
from zoo.sequences.time_index import PathLengthIndex, PoseDistanceIndex, SequentialIndex

DOCUMENT = Path(__file__).parents[1] / "docs" / "encodings.md"

COMBINATIONS: dict[str, Callable[[], CameraEncoding]] = {
    "PRoPE, ChannelRange": lambda: PRoPE(ChannelRange(0.0, 0.5)),
    "PRoPE, TemporalSection": lambda: PRoPE(TemporalSection()),
    "PRoPE, LowFrequencies": lambda: PRoPE(LowFrequencies(4, "w")),
    "PRoPE, HighFrequencies": lambda: PRoPE(HighFrequencies(4, "w")),
    "PRoPE, LowFrequencies shared": lambda: PRoPE(LowFrequencies(4, "w", shared_frequency=True)),
    "PRoPE, HighFrequencies shared": lambda: PRoPE(HighFrequencies(4, "w", shared_frequency=True)),
    "PRoPE, AlternateAxes x and y": lambda: PRoPE(AlternateAxes([LowFrequencies(4, "w"), LowFrequencies(4, "h")])),
    "PRoPE, FrequencyRange": lambda: PRoPE(FrequencyRange()),
    "PRoPE, ExtraChannels": lambda: PRoPE(ExtraChannels(8)),
    "PRoPE, ChannelRange, vo": lambda: PRoPE(ChannelRange(0.0, 0.5), apply_to="vo"),
    "PRoPE, LowFrequencies, vo": lambda: PRoPE(LowFrequencies(4, "w"), apply_to="vo"),
    "PRoPE, TemporalSection, qk": lambda: PRoPE(TemporalSection(), apply_to="qk"),
    "PRoPE, TemporalSection, vo": lambda: PRoPE(TemporalSection(), apply_to="vo"),
    "PRoPE, TemporalSection, rotation": lambda: PRoPE(TemporalSection(), pose_component="rotation"),
    "PRoPE, TemporalSection, translation": lambda: PRoPE(TemporalSection(), pose_component="translation"),
    "PRoPE, TemporalSection, scale rms": lambda: PRoPE(TemporalSection(), scale="rms"),
    "PRoPE, TemporalSection, saddle_balanced": lambda: PRoPE(TemporalSection(), reference="saddle_balanced"),
    "PRoPE, TemporalSection, no reference": lambda: PRoPE(TemporalSection(), reference=None),
    "GTA, ChannelRange": lambda: GTA(ChannelRange(0.0, 0.5)),
    "GTA, TemporalSection": lambda: GTA(TemporalSection()),
    "GTA, TemporalSection, vo": lambda: GTA(TemporalSection(), apply_to="vo"),
    "GTA, TemporalSection, rotation": lambda: GTA(TemporalSection(), pose_component="rotation"),
    "GTA, TemporalSection, learned scale": lambda: GTA(TemporalSection(), learn_scale=True),
    "GTA, ExtraChannels": lambda: GTA(ExtraChannels(8)),
    "CaPE, ChannelRange": lambda: CaPE(ChannelRange(0.0, 0.5)),
    "CaPE, TemporalSection": lambda: CaPE(TemporalSection()),
    "RayEncoding, TemporalSection": lambda: RayEncoding(TemporalSection()),
    "RayEncoding, TemporalSection, translation": lambda: RayEncoding(TemporalSection(), pose_component="translation"),
    "PoseALiBi": lambda: PoseALiBi(),
    "PoseALiBi, rotation": lambda: PoseALiBi("rotation"),
    "PoseALiBi, learned slopes": lambda: PoseALiBi("log", slopes="learned"),
    "PoseIndex, PoseDistanceIndex": lambda: PoseIndex(PoseDistanceIndex()),
    "PoseIndex, PathLengthIndex": lambda: PoseIndex(PathLengthIndex()),
    "PoseAxis": lambda: PoseAxis(),
    "PoseAxis, 2 lowest, PathLengthIndex rotation": lambda: PoseAxis(PathLengthIndex("rotation"), 2),
    "ValueRoPE": lambda: ValueRoPE(),
    "PointRoPE": lambda: PointRoPE(),
    "PointRoPE, qkvo": lambda: PointRoPE("qkvo"),
    "RayRoPE": lambda: RayRoPE(),
    "RayRoPE, known depth, one ray, qk, ChannelRange, scale rms": lambda: RayRoPE(
        rays=1, depth="known", apply_to="qk", channels=ChannelRange(0.0, 0.75), scale="rms"
    ),
    "URoPE": lambda: URoPE(),
    "LayerSubset(PRoPE, TemporalSection)": lambda: LayerSubset(PRoPE(TemporalSection()), "odd"),
    "HeadSubset(PRoPE, TemporalSection)": lambda: HeadSubset(PRoPE(TemporalSection()), [1]),
    "HeadSubset(PRoPE, ExtraChannels)": lambda: HeadSubset(PRoPE(ExtraChannels(8)), [0]),
    "LearnedStrength(PRoPE, FrequencyRange)": lambda: LearnedStrength(PRoPE(FrequencyRange())),
    "LearnedStrength(RayEncoding, TemporalSection)": lambda: LearnedStrength(RayEncoding(TemporalSection())),
    "LearnedStrength(GTA, TemporalSection, rotation)": lambda: LearnedStrength(
        GTA(TemporalSection(), pose_component="rotation")
    ),
    "Compose(GTA ExtraChannels, PRoPE TemporalSection)": lambda: Compose(
        [GTA(ExtraChannels(8)), PRoPE(TemporalSection())]
    ),
    "Compose(PRoPE TemporalSection, PoseALiBi)": lambda: Compose([PRoPE(TemporalSection()), PoseALiBi()]),
    "Compose(PoseALiBi, PointRoPE, CaPE TemporalSection)": lambda: Compose(
        [PoseALiBi("sum"), PointRoPE(), CaPE(TemporalSection())]
    ),
    "Compose(ValueRoPE, GTA TemporalSection)": lambda: Compose([ValueRoPE(), GTA(TemporalSection())]),
    "Compose(ValueRoPE, GTA TemporalSection qk)": lambda: Compose([ValueRoPE(), GTA(TemporalSection(), apply_to="qk")]),
    "Compose(GTA TemporalSection, PRoPE TemporalSection)": lambda: Compose(
        [GTA(TemporalSection()), PRoPE(TemporalSection())]
    ),
    "Compose(GTA TemporalSection qk, PRoPE TemporalSection vo)": lambda: Compose(
        [GTA(TemporalSection(), apply_to="qk"), PRoPE(TemporalSection(), apply_to="vo")]
    ),
}

HYBRID: dict[str, Callable[[], CameraEncoding]] = {  # for decoders with both kinds of layers
    "PRoPE, UnrotatedChannels": lambda: PRoPE(UnrotatedChannels()),
    "PRoPE, UnrotatedChannels, no reference": lambda: PRoPE(UnrotatedChannels(), reference=None),
    "PRoPE, ChannelRange without RoPE": lambda: PRoPE(ChannelRange(0.75, 1.0)),
    "PRoPE, ChannelRange of both": lambda: PRoPE(ChannelRange(0.0, 1.0)),
    "GTA, UnrotatedChannels": lambda: GTA(UnrotatedChannels(4)),
    "CaPE, UnrotatedChannels": lambda: CaPE(UnrotatedChannels()),
    "RayEncoding, UnrotatedChannels": lambda: RayEncoding(UnrotatedChannels()),
    "DeltaNetLayers(PRoPE vo)": lambda: DeltaNetLayers(PRoPE(UnrotatedChannels(), apply_to="vo")),
    "DeltaNetLayers(GTA vo)": lambda: DeltaNetLayers(GTA(ChannelRange(0.0, 0.5), apply_to="vo")),
    "DeltaNetLayers(GTA rotation)": lambda: DeltaNetLayers(GTA(UnrotatedChannels(), pose_component="rotation")),
    "DeltaNetLayers(GTA rotation, no reference)": lambda: DeltaNetLayers(
        GTA(UnrotatedChannels(), pose_component="rotation", reference=None)
    ),
    "DeltaNetLayers(RayEncoding rotation)": lambda: DeltaNetLayers(
        RayEncoding(UnrotatedChannels(), pose_component="rotation")
    ),
    "DeltaNetLayers(CaPE rotation)": lambda: DeltaNetLayers(CaPE(UnrotatedChannels(), pose_component="rotation")),
    "DeltaNetLayers(PointRoPE)": lambda: DeltaNetLayers(PointRoPE("qkvo")),
    "DeltaNetLayers(PoseAxis)": lambda: DeltaNetLayers(PoseAxis()),
    "DeltaNetLayers(LayerSubset(PRoPE vo))": lambda: DeltaNetLayers(
        LayerSubset(PRoPE(UnrotatedChannels(), apply_to="vo"), "even")
    ),
    "LearnedStrength(PRoPE, UnrotatedChannels)": lambda: LearnedStrength(PRoPE(UnrotatedChannels())),
    "DeltaNetLayers(LearnedStrength(GTA rotation))": lambda: DeltaNetLayers(
        LearnedStrength(GTA(UnrotatedChannels(), pose_component="rotation"))
    ),
    "Compose(PRoPE UnrotatedChannels, DeltaNetLayers(PRoPE vo))": lambda: Compose(
        [PRoPE(UnrotatedChannels()), DeltaNetLayers(PRoPE(UnrotatedChannels(), apply_to="vo"))]
    ),
    "Compose(PRoPE ChannelRange, DeltaNetLayers(GTA rotation))": lambda: Compose(
        [PRoPE(ChannelRange(0.0, 0.5)), DeltaNetLayers(GTA(UnrotatedChannels(), pose_component="rotation"))]
    ),
    "URoPE, UnrotatedChannels": lambda: URoPE(channels=UnrotatedChannels()),
    "Compose(RayRoPE, DeltaNetLayers(PRoPE vo))": lambda: Compose(
        [RayRoPE(), DeltaNetLayers(PRoPE(UnrotatedChannels(), apply_to="vo"))]
    ),
}

VIEW_MIXERS: dict[str, Callable[[int], ViewMixer]] = {
    "ViewAttention(PRoPE)": lambda width: ViewAttention(width, 16, PRoPE()),
    "ViewAttention(PRoPE, qk)": lambda width: ViewAttention(width, 16, PRoPE(apply_to="qk")),
    "ViewAttention(PRoPE, vo)": lambda width: ViewAttention(width, 16, PRoPE(apply_to="vo")),
    "ViewAttention(PRoPE, rotation)": lambda width: ViewAttention(width, 16, PRoPE(pose_component="rotation")),
    "ViewAttention(PRoPE, translation)": lambda width: ViewAttention(width, 16, PRoPE(pose_component="translation")),
    "ViewAttention(PRoPE, scale rms)": lambda width: ViewAttention(width, 16, PRoPE(scale="rms")),
    "ViewAttention(PRoPE, no reference)": lambda width: ViewAttention(width, 16, PRoPE(reference=None)),
    "ViewAttention(GTA)": lambda width: ViewAttention(width, 16, GTA()),
    "ViewAttention(CaPE)": lambda width: ViewAttention(width, 16, CaPE()),
    "RayAttention": lambda width: RayAttention(width),
    "RayAttention(URoPE, scale rms)": lambda width: RayAttention(width, 16, URoPE(scale="rms")),
    "RayEmbedding": lambda width: RayEmbedding(width),
    "RayEmbedding, no reference": lambda width: RayEmbedding(width, reference=None),
    "RayEmbedding, directions": lambda width: RayEmbedding(width, "directions"),
    "PoseEmbedding": lambda width: PoseEmbedding(width),
    "PoseEmbedding, no intrinsics": lambda width: PoseEmbedding(width, intrinsics=False),
    "PoseEmbedding, no reference": lambda width: PoseEmbedding(width, reference=None),
}

HEADINGS = {
    "world_views": "world, views only",
    "world_text": "world, with text",
    "canonical": "world, as configured",
    "scale": "scale of translations",
    "shift": "shift of positions",
    "intrinsics": "intrinsics",
    "per_token": "one camera per token",
    "identity_stock": "identity cameras change nothing",
    "text_stock": "text alone is unchanged",
    "order": "order of views",
}

# heads of the released models, and the base of their RoPE
RELEASED = {
    "Qwen2.5-VL": (HeadLayout.in_row(128, (16, 24, 24)), 1e6),
    "Qwen3-VL": (HeadLayout(128, (*(0, 1, 2) * 20, *(0,) * 4)), 5e6),
    "Qwen3.5": (HeadLayout(256, (*(0, 1, 2) * 10, 0, 1)), 1e7),
}
APART = 16  # number of positions between P and T, half of the default span


def document() -> str:
    """Return docs/encodings.md with up-to-date tables."""
    symmetries = {name: make().symmetries for name, make in COMBINATIONS.items()}
    hybrid = {name: bound(make()).symmetries for name, make in HYBRID.items()}
    view_symmetries = {name: make(32).symmetries for name, make in VIEW_MIXERS.items()}
    sections = {
        "symmetries": table("encoding, placement", symmetries),
        "symmetries: one axis": one_axis(),
        "symmetries: columns": columns(),
        "symmetries: hybrid decoders": table("encoding, placement", hybrid),
        "commutation errors": commutation_errors(),
        "pose axis": pose_axes(),
        "view mixers": table("view mixer", view_symmetries),
    }
    return filled(DOCUMENT, sections)


def bound(encoding: CameraEncoding) -> CameraEncoding:
    """Bind an encoding to a hybrid decoder, because some symmetries depend on the layout."""
    layout = hybrid_layout()
    encoding.bind_to_decoder(layout, layout.layers)
    return encoding


def one_axis() -> str:
    """Return the names of the encodings that a decoder with one axis of positions takes."""
    return "; ".join(f"`{name}`" for name, make in COMBINATIONS.items() if fits_one_axis(make()))


def fits_one_axis(encoding: CameraEncoding) -> bool:
    """Return whether a decoder with one axis of positions takes an encoding."""
    layout = DecoderLayout(128, 2, num_heads=4, num_key_value_heads=2, head=ONE_AXIS)
    try:
        encoding.bind_to_decoder(layout, layout.layers)
        choose_time_index(encoding, None, SequentialIndex())
    except InputError:
        return False
    return True


def commutation_errors() -> str:
    """Return a table of `Frequencies.commutation_error` in the released models."""
    rows = []
    for kind, section, count in product((LowFrequencies, HighFrequencies), get_args(Section), (4, 8)):
        placement = kind(count, section)
        errors = {
            model: f"{placement.commutation_error(rope(head, base), head):.1g}"
            for model, (head, base) in RELEASED.items()
        }
        rows.append({"placement": f"`{kind.__name__}({count}, {section!r})`", **errors})
    return markdown(rows)


def pose_axes() -> str:
    """Return a table of the angles by which `PoseAxis` moves tokens of the released models."""
    rows = []
    for name, (head, base) in RELEASED.items():
        half = len(head.frequencies(0)) // 2
        shares: list[tuple[int | None, Choice]] = [
            (None, "lowest"),
            (half, "highest"),
            (half, "alternate"),
            (half, "lowest"),
        ]
        for count, which in shares:
            chosen = PoseAxis(count=count, frequencies=which).chosen(head)
            angles = APART * rope(head, base)[chosen]
            sections = [len(chosen), *(len(set(head.frequencies(axis)) - set(chosen)) for axis in range(3))]
            rows.append(
                {
                    "model": name,
                    "`PoseAxis`": "all" if count is None else f"{count} {which}",
                    "sections (P, T, H, W)": ", ".join(map(str, sections)),
                    f"largest, at {APART} positions": f"{angles.max():.2g}",
                    "median": f"{angles.median():.2g}",
                    "smallest": f"{angles.min():.2g}",
                }
            )
    return markdown(rows)


def rope(head: HeadLayout, base: float) -> Tensor:
    """Return RoPE's frequencies in radians per position."""
    return base ** -(torch.arange(len(head.axes)) / len(head.axes))


def table(title: str, encodings: Mapping[str, Symmetries] | Mapping[str, ViewSymmetries]) -> str:
    """Return a table with one row per group of encodings with equal symmetries, and "yes" for each symmetry."""
    groups: dict[Symmetries | ViewSymmetries, list[str]] = {}
    for name, symmetries in encodings.items():
        groups.setdefault(symmetries, []).append(f"`{name}`")
    columns = asdict(next(iter(groups)))
    head = [title, *(HEADINGS[column] for column in columns)]
    rows = [
        ["; ".join(names), *("yes" if held else "" for held in asdict(each).values())] for each, names in groups.items()
    ]
    return markdown_table([head, *rows])


def columns() -> str:
    """Return a Markdown list that explains the columns, from the docstring of `Symmetries`."""
    assert Symmetries.__doc__ is not None
    lines = Symmetries.__doc__.split("Attributes:\n")[1].strip().splitlines()
    names = {f"{name}:": f"- *{heading}* (`{name}`):" for name, heading in HEADINGS.items()}
    return "\n".join(" ".join(names.get(word, word) for word in line.split()) for line in lines)


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
