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
from zoo.encodings.append import Append
from zoo.encodings.base import CameraEncoding
from zoo.encodings.cape import CaPE
from zoo.encodings.gta import GTA
from zoo.encodings.on_heads import OnHeads
from zoo.encodings.on_layers import Alternate, OnLayers
from zoo.encodings.placements import Fraction, HighFrequencies, LowFrequencies, TSection
from zoo.encodings.pose_index import PoseIndex
from zoo.encodings.prope import PRoPE
from zoo.encodings.rays import RayEmbedding, RayEncoding
from zoo.encodings.rotary import VORoPE, XYZRoPE
from zoo.encodings.stack import RELEASED, Stack
from zoo.encodings.symmetries import Symmetries, ViewSymmetries
from zoo.encodings.view_attention import ViewAttention
from zoo.encodings.views import ViewMixer
from zoo.time_index import Pose, PosePath

DOCUMENT = Path(__file__).parents[2] / "docs" / "encodings.md"

COMBINATIONS: dict[str, Callable[[], CameraEncoding]] = {
    "PRoPE, Fraction": lambda: PRoPE(Fraction(0.0, 0.5)),
    "PRoPE, TSection": lambda: PRoPE(TSection()),
    "PRoPE, LowFrequencies": lambda: PRoPE(LowFrequencies(4, "w")),
    "PRoPE, HighFrequencies": lambda: PRoPE(HighFrequencies(4, "w")),
    "PRoPE, LowFrequencies tied": lambda: PRoPE(LowFrequencies(4, "w", tied=True)),
    "PRoPE, HighFrequencies tied": lambda: PRoPE(HighFrequencies(4, "w", tied=True)),
    "PRoPE, Alternate x and y": lambda: PRoPE(Alternate([LowFrequencies(4, "w"), LowFrequencies(4, "h")])),
    "PRoPE, Append": lambda: PRoPE(Append(8)),
    "PRoPE, Fraction, vo": lambda: PRoPE(Fraction(0.0, 0.5), terms="vo"),
    "PRoPE, LowFrequencies, vo": lambda: PRoPE(LowFrequencies(4, "w"), terms="vo"),
    "PRoPE, TSection, qk": lambda: PRoPE(TSection(), terms="qk"),
    "PRoPE, TSection, vo": lambda: PRoPE(TSection(), terms="vo"),
    "PRoPE, TSection, rotation": lambda: PRoPE(TSection(), parts="rotation"),
    "PRoPE, TSection, translation": lambda: PRoPE(TSection(), parts="translation"),
    "PRoPE, TSection, scale rms": lambda: PRoPE(TSection(), scale="rms"),
    "PRoPE, TSection, saddle_balanced": lambda: PRoPE(TSection(), reference="saddle_balanced"),
    "PRoPE, TSection, the data's world": lambda: PRoPE(TSection(), reference=None),
    "GTA, Fraction": lambda: GTA(Fraction(0.0, 0.5)),
    "GTA, TSection": lambda: GTA(TSection()),
    "GTA, TSection, vo": lambda: GTA(TSection(), terms="vo"),
    "GTA, TSection, rotation": lambda: GTA(TSection(), parts="rotation"),
    "GTA, TSection, learned scale": lambda: GTA(TSection(), learn_scale=True),
    "GTA, Append": lambda: GTA(Append(8)),
    "CaPE, Fraction": lambda: CaPE(Fraction(0.0, 0.5)),
    "CaPE, TSection": lambda: CaPE(TSection()),
    "RayEncoding, TSection": lambda: RayEncoding(TSection()),
    "RayEncoding, TSection, translation": lambda: RayEncoding(TSection(), parts="translation"),
    "PoseALiBi": lambda: PoseALiBi(),
    "PoseALiBi, rotation": lambda: PoseALiBi("rotation"),
    "PoseALiBi, learned slopes": lambda: PoseALiBi("log", slopes="learned"),
    "PoseIndex, Pose": lambda: PoseIndex(Pose()),
    "PoseIndex, PosePath": lambda: PoseIndex(PosePath()),
    "VORoPE": lambda: VORoPE(),
    "XYZRoPE": lambda: XYZRoPE(),
    "XYZRoPE, qkvo": lambda: XYZRoPE("qkvo"),
    "OnLayers(PRoPE, TSection)": lambda: OnLayers(PRoPE(TSection()), "odd"),
    "OnHeads(PRoPE, TSection)": lambda: OnHeads(PRoPE(TSection()), [1]),
    "OnHeads(PRoPE, Append)": lambda: OnHeads(PRoPE(Append(8)), [0]),
    "Stack(GTA Append, PRoPE TSection)": lambda: Stack([GTA(Append(8)), PRoPE(TSection())]),
    "Stack(PRoPE TSection, PoseALiBi)": lambda: Stack([PRoPE(TSection()), PoseALiBi()]),
    "Stack(PoseALiBi, XYZRoPE, CaPE TSection)": lambda: Stack([PoseALiBi("sum"), XYZRoPE(), CaPE(TSection())]),
    "Stack(VORoPE, GTA TSection)": lambda: Stack([VORoPE(), GTA(TSection())]),
    "Stack(VORoPE, GTA TSection qk)": lambda: Stack([VORoPE(), GTA(TSection(), terms="qk")]),
    "Stack(GTA TSection, PRoPE TSection)": lambda: Stack([GTA(TSection()), PRoPE(TSection())]),
    "Stack(GTA TSection qk, PRoPE TSection vo)": lambda: Stack(
        [GTA(TSection(), terms="qk"), PRoPE(TSection(), terms="vo")]
    ),
}

VIEW_MIXERS: dict[str, Callable[[int], ViewMixer]] = {
    "ViewAttention(PRoPE)": lambda width: ViewAttention(width, 16, PRoPE()),
    "ViewAttention(PRoPE, qk)": lambda width: ViewAttention(width, 16, PRoPE(terms="qk")),
    "ViewAttention(PRoPE, vo)": lambda width: ViewAttention(width, 16, PRoPE(terms="vo")),
    "ViewAttention(PRoPE, rotation)": lambda width: ViewAttention(width, 16, PRoPE(parts="rotation")),
    "ViewAttention(PRoPE, translation)": lambda width: ViewAttention(width, 16, PRoPE(parts="translation")),
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

A translation without its rotation (`parts: translation`) is no group action, V_i V_j^-1 isn't what two views see of
each other: a change of world shows, whatever the placement, unless the cameras are seen from a reference view.

On the T section queries and keys need `--model.time NoTime`: one time for all views of a clip. Text sees the world's
frame, so with text in the sequence the world cancels only where the cameras are seen from a reference view of the clip,
which is the default, where text never meets the camera (`Append`), or where only distances between views or positions
count (`PoseALiBi`, `PoseIndex`, `VORoPE`). `XYZRoPE` reads no intrinsics, but its points were found with them.

`LowFrequencies` and `HighFrequencies` put one matrix on four of RoPE's pairs, which turn at four speeds. Untied, RoPE
and the camera don't quite commute: RoPE's turn between two tokens that are n positions apart in that section is off
from one that does by at most n times the number below, in the spectral norm. A change of world moves q^T k by at most
that, times the norms of what the cameras' matrices make of q and k, before and after, added up.

| placement (released models: 128 channels a head, sections 16, 24, 24) | radians a position |
|---|---|
{misfits}

Tied, the four pairs turn at their geometric mean, and everything is exact but the stock model.

## On the connector

What tells the 2D tokens of the views about their cameras before the decoder sees them (`--model.views`). Without
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
`XYZRoPE` tokens that show the same place. The distance to a reference view as a `PoseIndex` brings views together that
are not (the rings); the length of the path keeps apart what the camera saw again. What `VORoPE` turns are values: it
prefers nothing.
"""


def declared() -> dict[str, Symmetries]:
    """What each combination says of itself."""
    return {name: make().symmetries for name, make in COMBINATIONS.items()}


def document() -> str:
    """The text of docs/encodings.md."""
    misfits = [
        f"| `{kind.__name__}({count}, {section!r})` | {kind(count, section).misfit(FREQUENCIES, SECTION):.1g} |"
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
