"""The table of docs/encodings.md: each encoding at each place, and what it keeps exactly.

    python -m zoo.encodings.table                  # writes docs/encodings.md

The property tests run over the same `COMBINATIONS` and take the same declarations at their word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import torch

from zoo.encodings.alibi import PoseALiBi
from zoo.encodings.base import CameraEncoding
from zoo.encodings.cape import CaPE
from zoo.encodings.compose import RELEASED, Compose
from zoo.encodings.extra_channels import ExtraChannels
from zoo.encodings.gta import GTA
from zoo.encodings.head_subset import HeadSubset
from zoo.encodings.layer_subset import AlternateAxes, LayerSubset
from zoo.encodings.placements import ChannelRange, HighFrequencies, LowFrequencies, TemporalSection
from zoo.encodings.pose_index import PoseIndex
from zoo.encodings.prope import PRoPE
from zoo.encodings.rays import RayEmbedding, RayEncoding
from zoo.encodings.rotary import PointRoPE, ValueRoPE
from zoo.encodings.symmetries import Symmetries, ViewSymmetries
from zoo.encodings.view_attention import ViewAttention
from zoo.encodings.view_mixer import ViewMixer
from zoo.time_index import PathLengthIndex, PoseDistanceIndex

DOCUMENT = Path(__file__).parents[2] / "docs" / "encodings.md"

COMBINATIONS: dict[str, Callable[[], CameraEncoding]] = {
    "PRoPE, ChannelRange": lambda: PRoPE(ChannelRange(0.0, 0.5)),
    "PRoPE, TemporalSection": lambda: PRoPE(TemporalSection()),
    "PRoPE, LowFrequencies": lambda: PRoPE(LowFrequencies(4, "w")),
    "PRoPE, HighFrequencies": lambda: PRoPE(HighFrequencies(4, "w")),
    "PRoPE, LowFrequencies shared": lambda: PRoPE(LowFrequencies(4, "w", shared_frequency=True)),
    "PRoPE, HighFrequencies shared": lambda: PRoPE(HighFrequencies(4, "w", shared_frequency=True)),
    "PRoPE, AlternateAxes x and y": lambda: PRoPE(AlternateAxes([LowFrequencies(4, "w"), LowFrequencies(4, "h")])),
    "PRoPE, ExtraChannels": lambda: PRoPE(ExtraChannels(8)),
    "PRoPE, ChannelRange, vo": lambda: PRoPE(ChannelRange(0.0, 0.5), apply_to="vo"),
    "PRoPE, LowFrequencies, vo": lambda: PRoPE(LowFrequencies(4, "w"), apply_to="vo"),
    "PRoPE, TemporalSection, qk": lambda: PRoPE(TemporalSection(), apply_to="qk"),
    "PRoPE, TemporalSection, vo": lambda: PRoPE(TemporalSection(), apply_to="vo"),
    "PRoPE, TemporalSection, rotation": lambda: PRoPE(TemporalSection(), pose_component="rotation"),
    "PRoPE, TemporalSection, translation": lambda: PRoPE(TemporalSection(), pose_component="translation"),
    "PRoPE, TemporalSection, scale rms": lambda: PRoPE(TemporalSection(), scale="rms"),
    "PRoPE, TemporalSection, saddle_balanced": lambda: PRoPE(TemporalSection(), reference="saddle_balanced"),
    "PRoPE, TemporalSection, the data's world": lambda: PRoPE(TemporalSection(), reference=None),
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
    "PoseIndex, Pose": lambda: PoseIndex(PoseDistanceIndex()),
    "PoseIndex, PathLengthIndex": lambda: PoseIndex(PathLengthIndex()),
    "ValueRoPE": lambda: ValueRoPE(),
    "PointRoPE": lambda: PointRoPE(),
    "PointRoPE, qkvo": lambda: PointRoPE("qkvo"),
    "LayerSubset(PRoPE, TemporalSection)": lambda: LayerSubset(PRoPE(TemporalSection()), "odd"),
    "HeadSubset(PRoPE, TemporalSection)": lambda: HeadSubset(PRoPE(TemporalSection()), [1]),
    "HeadSubset(PRoPE, ExtraChannels)": lambda: HeadSubset(PRoPE(ExtraChannels(8)), [0]),
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

VIEW_MIXERS: dict[str, Callable[[int], ViewMixer]] = {
    "ViewAttention(PRoPE)": lambda width: ViewAttention(width, 16, PRoPE()),
    "ViewAttention(PRoPE, qk)": lambda width: ViewAttention(width, 16, PRoPE(apply_to="qk")),
    "ViewAttention(PRoPE, vo)": lambda width: ViewAttention(width, 16, PRoPE(apply_to="vo")),
    "ViewAttention(PRoPE, rotation)": lambda width: ViewAttention(width, 16, PRoPE(pose_component="rotation")),
    "ViewAttention(PRoPE, translation)": lambda width: ViewAttention(width, 16, PRoPE(pose_component="translation")),
    "ViewAttention(PRoPE, scale rms)": lambda width: ViewAttention(width, 16, PRoPE(scale="rms")),
    "ViewAttention(PRoPE, the data's world)": lambda width: ViewAttention(width, 16, PRoPE(reference=None)),
    "ViewAttention(GTA)": lambda width: ViewAttention(width, 16, GTA()),
    "ViewAttention(CaPE)": lambda width: ViewAttention(width, 16, CaPE()),
    "RayEmbedding": lambda width: RayEmbedding(width),
    "RayEmbedding, the data's world": lambda width: RayEmbedding(width, reference=None),
    "RayEmbedding, directions": lambda width: RayEmbedding(width, "directions"),
}

HEADINGS = {
    "world_views": "world, views only",
    "world_text": "world, with text",
    "canonical": "world, as configured",
    "scale": "unit of length",
    "shift": "shift of positions",
    "intrinsics": "intrinsics",
    "per_token": "a camera a token",
    "identity_stock": "identity cameras are stock",
    "text_stock": "text alone is stock",
    "order": "order of views",
}

HEAD_DIM, SECTION = RELEASED
FREQUENCIES = 1e6 ** -(2 * torch.arange(HEAD_DIM // 2) / HEAD_DIM)  # of the released models' RoPE, one a pair

TEXT = """# Camera encodings, and what they keep exactly

This file is made by `python -m zoo.encodings.table` from what each encoding declares. `tests/zoo/encodings/` measures
every cell in float64, at the level of attention: what is marked holds to 1e-10, what is not is broken there.

{table}

{columns}

A translation without its rotation (`pose_component: translation`) is no group action, V_i V_j^-1 isn't what two views
see of each other: a change of world shows, whatever the placement, unless the cameras are seen from a reference view.

On the T section queries and keys need `--model.time_index ConstantIndex`: one time for all views of a clip. Text sees
the world's
frame, so with text in the sequence the world cancels only where the cameras are seen from a reference view of the clip,
which is the default, where text never meets the camera (`ExtraChannels`), or where only distances between views or
positions
count (`PoseALiBi`, `PoseIndex`, `ValueRoPE`). `PointRoPE` reads no intrinsics, but its points were found with them.

`LowFrequencies` and `HighFrequencies` put one matrix on four of RoPE's pairs, which turn at four speeds. Untied, RoPE
and the camera don't quite commute: RoPE's turn between two tokens that are n positions apart in that section is off
from one that does by at most n times the number below, in the spectral norm. A change of world moves q^T k by at most
that, times the norms of what the cameras' matrices make of q and k, before and after, added up.

| placement (released models: 128 channels a head, sections 16, 24, 24) | radians a position |
|---|---|
{misfits}

Tied, the four pairs turn at their geometric mean, and everything is exact but the stock model.

## On the connector

What tells the 2D tokens of the views about their cameras before the decoder sees them (`--model.view_mixer`). Without
training it adds nothing, bit for bit.

{view_table}

{view_columns}

## What attention prefers

![what each encoding adds to the logits between 40 views of a real trajectory](attention_bias.png)

Between tokens of the same content in the middle of their views, along 40 views of 7-Scenes RedKitchen, from
`ZOO_REALDATA=<folder> python -m benchmarks.attention_bias`: what a view in a row attends to less, in blue. On average
over contents the matrices of PRoPE, GTA, CaPE and rays prefer views that look the same way, and know nothing of
distance: the trace of a relative pose is that of its rotation. Translations are in the spread over contents, so what
they do is for the model to learn. `PoseALiBi` prefers near views from the start, by the distance that it is given;
`PointRoPE` tokens that show the same place. The distance to a reference view as a `PoseIndex` brings views together
that
are not (the rings); the length of the path keeps apart what the camera saw again. What `ValueRoPE` turns are values: it
prefers nothing.
"""


def declared() -> dict[str, Symmetries]:
    """What each combination says of itself."""
    return {name: make().symmetries for name, make in COMBINATIONS.items()}


def document() -> str:
    """The text of docs/encodings.md."""
    misfits = [
        f"| `{kind.__name__}({count}, {section!r})` "
        f"| {kind(count, section).commutation_error(FREQUENCIES, SECTION):.1g} |"
        for kind in (LowFrequencies, HighFrequencies)
        for section in ("t", "h", "w")
        for count in (4, 8)
    ]
    return TEXT.format(
        table=table("encoding, placement", declared()),
        columns=columns(Symmetries),
        view_table=table("branch", {name: make(32).symmetries for name, make in VIEW_MIXERS.items()}),
        view_columns=columns(ViewSymmetries),
        misfits="\n".join(misfits),
    )


def table(of: str, rows: Mapping[str, Symmetries] | Mapping[str, ViewSymmetries]) -> str:
    """A row each, with a yes for what it keeps."""
    first = next(iter(rows))
    names = [field.name for field in fields(rows[first])]
    lines = [[of, *(HEADINGS[name] for name in names)], ["---"] + [":-:"] * len(names)]
    for row, symmetries in rows.items():
        lines.append([row, *("yes" if getattr(symmetries, name) else "" for name in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns(kind: type[Symmetries] | type[ViewSymmetries]) -> str:
    """What the columns mean, from the docstring of the declarations."""
    assert kind.__doc__ is not None
    lines = kind.__doc__.split("Attributes:\n")[1].strip().splitlines()
    names = {f"{name}:": f"- *{heading}*:" for name, heading in HEADINGS.items()}
    return "\n".join(" ".join(names.get(word, word) for word in line.split()) for line in lines)


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document())
