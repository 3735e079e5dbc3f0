"""The tables of docs/encodings.md: encodings with placements, and their exact symmetries.

    python -m zoo.encodings.table                  # writes docs/encodings.md

The property tests measure the declared symmetries of the same `COMBINATIONS` and `VIEW_MIXERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

import torch

from zoo.encodings.alibi import PoseALiBi
from zoo.encodings.base import CameraEncoding
from zoo.encodings.cape import CaPE
from zoo.encodings.compose import COMMON_HEAD, Compose
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
    "PoseIndex, PoseDistanceIndex": lambda: PoseIndex(PoseDistanceIndex()),
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
    "scale": "scale of translations",
    "shift": "shift of positions",
    "intrinsics": "intrinsics",
    "per_token": "one camera per token",
    "identity_stock": "identity cameras are stock",
    "text_stock": "text alone is stock",
    "order": "order of views",
}

HEAD_DIM, SECTION = COMMON_HEAD
FREQUENCIES = 1e6 ** -(2 * torch.arange(HEAD_DIM // 2) / HEAD_DIM)  # RoPE with base 1e6, radians per position

TEXT = """# Camera encodings and their exact symmetries

This file is generated by `python -m zoo.encodings.table` from the `symmetries` that each class declares. The tests in
`tests/zoo/encodings/` measure every cell in float64, at the level of attention: a symmetry marked "yes" holds to 1e-10,
any other one is measurably broken.

{table}

{columns}

Translations without rotations (`pose_component: translation`) are not a group: V_i V_j^-1 is then not the relative pose
of two views, so a change of world is visible with every placement, except with a reference view.

On the T section, encodings of queries and keys require `--model.time_index ConstantIndex`, one time position for all
views of a clip. Text sees the world frame. With text in the sequence, a change of world therefore cancels only with a
reference view (the default), if text has zeros in the channels of the camera (`ExtraChannels`), or if only distances
between views or positions enter (`PoseALiBi`, `PoseIndex`, `ValueRoPE`). `PointRoPE` does not read intrinsics, but its
points were computed with them.

`LowFrequencies` and `HighFrequencies` apply one matrix to four RoPE pairs with four frequencies. Unless the frequency
is shared, RoPE and the matrix commute only approximately: RoPE's rotation between two tokens that are n positions apart
in that section differs from one that commutes by at most n times the number below, in the spectral norm. A change of
world changes q^T k by at most that, times the sum of the products of the norms of the transformed q and k before and
after the change.

| placement (heads of 128 channels, sections 16, 24, 24, base 1e6) | radians per position |
|---|---|
{errors}

With a shared frequency, the four pairs rotate at their geometric mean, and all symmetries except those with the stock
model are exact.

## View mixers

A view mixer (`--model.view_mixer`) adds camera information to the 2D tokens before the decoder. Before training it is
the identity, bit for bit.

{view_table}

{view_columns}

## Attention bias of each encoding

![the bias that each encoding adds to the logits between 40 views of a real trajectory](attention_bias.png)

Change of the logits between tokens with the same content in the centers of 40 views along 7-Scenes RedKitchen, from
`ZOO_REALDATA=<folder> python -m benchmarks.attention_bias`; blue marks views that a row attends to less. On average
over contents, the matrices of PRoPE, GTA, CaPE and `RayEncoding` prefer views with a similar orientation, independent
of their distance: the trace of a relative pose is that of its rotation. Translations only affect the variance over
contents, so their use has to be learned. `PoseALiBi` prefers near views from the start, by its distance measure;
`PointRoPE` prefers tokens that show the same place. As a `PoseIndex`, the distance to a reference view gives distant
views the same position (the rings), and the length of the path gives two positions to a view that is seen twice.
`ValueRoPE` rotates values and does not change the logits.
"""


def document() -> str:
    """Returns the text of docs/encodings.md."""
    errors = [
        f"| `{kind.__name__}({count}, {section!r})` "
        f"| {kind(count, section).commutation_error(FREQUENCIES, SECTION):.1g} |"
        for kind in (LowFrequencies, HighFrequencies)
        for section in ("t", "h", "w")
        for count in (4, 8)
    ]
    return TEXT.format(
        table=table("encoding, placement", {name: make().symmetries for name, make in COMBINATIONS.items()}),
        columns=columns(Symmetries),
        view_table=table("view mixer", {name: make(32).symmetries for name, make in VIEW_MIXERS.items()}),
        view_columns=columns(ViewSymmetries),
        errors="\n".join(errors),
    )


def table(title: str, rows: Mapping[str, Symmetries] | Mapping[str, ViewSymmetries]) -> str:
    """Returns a Markdown table with one row per class, and "yes" for each symmetry."""
    first = next(iter(rows))
    names = [field.name for field in fields(rows[first])]
    lines = [[title, *(HEADINGS[name] for name in names)], ["---"] + [":-:"] * len(names)]
    for row, symmetries in rows.items():
        lines.append([row, *("yes" if getattr(symmetries, name) else "" for name in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def columns(kind: type[Symmetries] | type[ViewSymmetries]) -> str:
    """Returns a Markdown list that explains the columns, from the docstring of the dataclass."""
    assert kind.__doc__ is not None
    lines = kind.__doc__.split("Attributes:\n")[1].strip().splitlines()
    names = {f"{name}:": f"- *{heading}*:" for name, heading in HEADINGS.items()}
    return "\n".join(" ".join(names.get(word, word) for word in line.split()) for line in lines)


if __name__ == "__main__":
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(document())
