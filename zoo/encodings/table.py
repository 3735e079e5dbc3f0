"""The table of docs/encodings.md: each encoding at each place, and what it keeps exactly.

    python -m zoo.encodings.table                  # writes docs/encodings.md

The property tests run over the same `COMBINATIONS` and take the same declarations at their word.
"""

from __future__ import annotations

from collections.abc import Callable
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
from zoo.encodings.rays import RayEncoding
from zoo.encodings.rotary import VORoPE, XYZRoPE
from zoo.encodings.stack import Stack
from zoo.encodings.symmetries import Symmetries
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
}

HEADINGS = {
    "world_views": "world, views only",
    "world_text": "world, with text",
    "canonical": "world, seen from a reference view",
    "scale": "unit of length",
    "shift": "shift of positions",
    "per_token": "a camera a token",
    "identity_stock": "identity cameras are stock",
    "text_stock": "text alone is stock",
}

RELEASED_FREQUENCIES = 1e6 ** -(torch.arange(64) / 64)  # Qwen2.5-VL: 64 pairs a head
RELEASED_SECTION = (16, 24, 24)

TEXT = """# Camera encodings, and what they keep exactly

This file is made by `python -m zoo.encodings.table` from what each encoding declares. `tests/zoo/encodings/` measures
every cell in float64, at the level of attention: what is marked holds to 1e-10, what is not is broken there.

{table}

{columns}

A placement on the T section needs `--model.time NoTime`: one time for all views of a clip. Text sees the world's frame,
so with text in the sequence the world cancels only where the cameras are seen from a reference view of the clip, which
is the default, or where text never meets the camera (`Append`).

`LowFrequencies` and `HighFrequencies` put one matrix on four of RoPE's pairs, which turn at four speeds. Untied, RoPE
and the camera don't quite commute: for two tokens that are n positions apart in that section, what the matrices see is
off by at most n times

| placement (released models: 128 channels a head, sections 16, 24, 24) | radians a position |
|---|---|
{misfits}

Tied, the four pairs turn at their geometric mean, and everything is exact but the stock model.

## What attention prefers

![what each encoding adds to the logits between 40 views of a real trajectory](attention_bias.png)

Between tokens of the same content in the middle of their views, along 40 views of 7-Scenes RedKitchen, from
`python -m benchmarks.attention_bias`: what a view in a row attends to less, in blue. On average over contents the
matrices of PRoPE, GTA, CaPE and rays prefer views that look the same way, and know nothing of distance: the trace of a
relative pose is that of its rotation. Translations are in the spread over contents, so what they do is for the model to
learn. `PoseALiBi` prefers near views from the start, by the distance that it is given; `XYZRoPE` tokens that show the
same place. The distance to a reference view as a `PoseIndex` brings views together that are not (the rings); the length
of the path keeps apart what the camera saw again. What `VORoPE` turns are values: it prefers nothing.
"""


def declared() -> dict[str, Symmetries]:
    """What each combination says of itself."""
    return {name: make().symmetries for name, make in COMBINATIONS.items()}


def document() -> str:
    """The text of docs/encodings.md."""
    names = [field.name for field in fields(Symmetries)]
    lines = [["encoding, placement", *(HEADINGS[name] for name in names)], ["---"] + [":-:"] * len(names)]
    for combination, symmetries in declared().items():
        lines.append([combination, *("yes" if getattr(symmetries, name) else "" for name in names)])
    misfits = [
        f"| `{kind.__name__}({count}, {section!r})` | "
        f"{kind(count, section).misfit(RELEASED_FREQUENCIES, RELEASED_SECTION):.1g} |"
        for kind in (LowFrequencies, HighFrequencies)
        for section in ("t", "h", "w")
        for count in (4, 8)
    ]
    return TEXT.format(
        table="\n".join(f"| {' | '.join(line)} |" for line in lines),
        columns=columns(),
        misfits="\n".join(misfits),
    )


def columns() -> str:
    """What the columns mean, from the docstring of `Symmetries`."""
    assert Symmetries.__doc__ is not None
    lines = Symmetries.__doc__.split("Attributes:\n")[1].strip().splitlines()
    names = {f"{name}:": f"- *{heading}*:" for name, heading in HEADINGS.items()}
    return "\n".join(" ".join(names.get(word, word) for word in line.split()) for line in lines)


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document())
