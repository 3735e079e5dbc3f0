"""The figures of docs/concepts/, in the reader's light or dark: python -m docs.concepts.figures writes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from callbacks.camera_map import camera_map
from datamodules import PixelBounds, Rooms, UniformSampler
from datamodules.dataset import SceneDataset
from zoo.encodings.decoder_layout import HeadLayout
from zoo.encodings.placements import ChannelRange, LowFrequencies, Placement, TemporalSection

FOLDER = Path(__file__).parent
VIEWS = ("#3458c0", "#7a5ab8", "#b85a8c", "#e05c2c")  # first to last, as in the maps of camera paths
AXES = {"T": "#e05c2c", "H": "#2f8f6b", "W": "#3458c0"}
STYLE = """
    text { font: 14px system-ui, sans-serif; fill: #1f2328; text-anchor: middle }
    .left { text-anchor: start }
    .note { fill: #59636e }
    .line { stroke: #59636e; stroke-width: 1.5; fill: none }
    .arrow { marker-end: url(#head) }
    .head { fill: #59636e }
    .box { fill: #f6f8fa; stroke: #59636e }
    .off { fill: #d8dee4 }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .note { fill: #9198a1 }
      .line { stroke: #9198a1 }
      .head { fill: #9198a1 }
      .box { fill: #151b23; stroke: #9198a1 }
      .off { fill: #3d444d }
    }
"""
Point = tuple[float, float]


def drawing(title: str, width: int, height: int, lines: Iterable[str]) -> str:
    """An SVG file."""
    marker = '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="9" markerHeight="9" '
    marker += 'markerUnits="userSpaceOnUse" orient="auto"><path class="head" d="M0 0 L8 4 L0 8 z"/></marker>'
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
            f'aria-label="{title}">',
            f"  <style>{STYLE}  </style>",
            f"  {marker}",
            *(f"  {line}" for line in lines),
            "</svg>\n",
        )
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{words}</text>'


def box(x: float, y: float, width: float, height: float, fill: str = "") -> str:
    paint = f'fill="{fill}"' if fill.startswith("#") else f'class="{fill or "box"}"'
    return f'<rect {paint} x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2"/>'


def arrow(start: Point, end: Point, color: str = "") -> str:
    style = f' style="stroke: {color}; stroke-width: 2.5"' if color else ""
    return f'<path class="line arrow"{style} d="M{start[0]:g} {start[1]:g} L{end[0]:g} {end[1]:g}"/>'


def tokens() -> str:
    """Frames, temporal patches, grids of tokens, and the sequence."""
    lines = [
        text(20, 40, "frames", "left"),
        text(20, 130, "temporal patches", "left"),
        text(20, 148, "= views", "left note"),
    ]
    lines += [text(20, 230, "2D and 3D tokens", "left"), text(20, 330, "the decoder's sequence", "left")]
    sequence = 200
    for word in ("What", "you", "see", ":"):
        lines += [box(sequence, 312, 38, 26), text(sequence + 19, 330, word, "note")]
        sequence += 42
    for view, color in enumerate(VIEWS):
        left = 200 + 150 * view
        for frame in range(2):
            lines += [
                box(left + 58 * frame, 20, 52, 34),
                text(left + 26 + 58 * frame, 42, str(10 * (2 * view + frame))),
            ]
            lines.append(arrow((left + 26 + 58 * frame, 58), (left + 55, 106)))
        lines += [box(left + 20, 110, 70, 40, color), arrow((left + 55, 154), (left + 55, 196))]
        for cell in range(6):
            lines.append(box(left + 22 + 24 * (cell % 3), 202 + 24 * (cell // 3), 20, 20, color))
            lines.append(box(sequence, 312, 13, 26, color))
            sequence += 15
        lines.append(arrow((left + 55, 254), (sequence - 45, 306)))
    for word in ("Where", "is ...?"):
        lines += [box(sequence + 4, 312, 50, 26), text(sequence + 29, 330, word, "note")]
        sequence += 54
    return drawing("From frames to the decoder's sequence", 850, 360, lines)


def cameras() -> str:
    """The axes of a camera, its pose, and normalized pixels."""
    lines = []
    for origin, turn, names in (((90, 250), 0.0, ("x", "y", "z")), ((330, 150), 0.5, ("x", "y", "z"))):
        for name, angle, length in ((names[0], 0.0, 80), (names[1], math.pi / 2, 80), (names[2], -0.7, 90)):
            end = (origin[0] + length * math.cos(angle + turn), origin[1] + length * math.sin(angle + turn))
            lines.append(arrow(origin, end, dict(zip("xyz", AXES.values(), strict=True))[name]))
            lines.append(text(end[0] + 12 * math.cos(angle + turn), end[1] + 5 + 12 * math.sin(angle + turn), name))
    lines += [
        text(90, 365, "world"),
        text(300, 285, "camera: x right, y down, z forward"),
        arrow((105, 225), (300, 140)),
    ]
    lines += [text(165, 160, "V"), text(165, 110, "x_camera = V x_world", "note")]
    left, top, width, height = 520, 70, 240, 160
    middle = (left + width / 2, top + height / 2)
    lines += [box(left, top, width, height), arrow((left - 15, middle[1]), (left + width + 25, middle[1]))]
    lines += [arrow((middle[0], top - 20), (middle[0], top + height + 25)), text(left, top - 8, "(-1/2, -1/2)")]
    lines += [text(left + width, top + height + 22, "(1/2, 1/2)"), text(middle[0] + 22, middle[1] - 10, "(0, 0)")]
    lines += [
        text(middle[0], 285, "image, normalized: u = fx/W · x/z + cx/W - 1/2"),
        text(middle[0], 365, "intrinsics K"),
    ]
    return drawing("The axes of a camera, its pose and its normalized intrinsics", 820, 390, lines)


def encodings() -> str:
    """The channels of a head of Qwen2.5-VL that placements take, and the four places of the attention."""
    head, unit, left = HeadLayout.in_row(128, (16, 24, 24)), 4.6, 200
    placements: dict[str, Placement] = {
        "ChannelRange(0, 0.5)": ChannelRange(0.0, 0.5),
        "TemporalSection": TemporalSection(),
        "LowFrequencies(8, 'w')": LowFrequencies(8, "w"),
    }
    lines = [text(20, 40, "RoPE of Qwen2.5-VL", "left")]
    for channel in range(head.dim):
        axis = tuple(AXES)[head.axes[channel % len(head.axes)]]
        lines.append(box(left + unit * channel, 22, unit, 26, AXES[axis]))
    for half in range(2):
        for name, middle in (("T", 8), ("H", 28), ("W", 52)):
            lines.append(text(left + unit * (64 * half + middle), 66, name, "note"))
    for row, (name, placement) in enumerate(placements.items()):
        lines.append(text(20, 104 + 36 * row, name, "left"))
        taken = set(placement.head_channels(head))
        for channel in range(head.dim):
            lines.append(box(left + unit * channel, 86 + 36 * row, unit, 24, VIEWS[2] if channel in taken else "off"))
    lines.append(
        text(left, 214, "the 128 channels of a head; colored: those that a camera's matrix transforms", "left note")
    )
    steps = (("q' = Pᵀ q", 60), ("k' = P⁻¹ k", 240), ("softmax(q'·k')", 420), ("o = Σ a v'", 600), ("o' = P o", 780))
    for words, middle in steps:
        lines += [box(middle - 55, 250, 110, 36), text(middle, 273, words)]
    lines += [arrow((start + 55, 268), (start + 121, 268)) for start in (240, 420, 600)]
    lines += [
        '<path class="line arrow" d="M60 290 V306 H420 V290"/>',
        box(545, 316, 110, 36),
        text(600, 339, "v' = P⁻¹ v"),
    ]
    lines += [arrow((600, 314), (600, 290))]
    return drawing(
        "The channels of a head that placements take, and the four places at which an encoding acts", 850, 370, lines
    )


def exact() -> str:
    """Two cameras in two worlds: the relative pose is the same."""
    lines: list[str] = []
    for shift, turn, name in ((0, 0.0, "V"), (420, 0.6, "V G")):
        center = (190 + shift, 150)

        def at(x: float, y: float, center: Point = center, turn: float = turn) -> Point:
            return (
                center[0] + x * math.cos(turn) - y * math.sin(turn),
                center[1] + x * math.sin(turn) + y * math.cos(turn),
            )

        world = (60 + shift, 250)
        lines += [arrow(world, (world[0] + 45, world[1])), arrow(world, (world[0], world[1] - 45))]
        lines.append(text(world[0] + 20, world[1] + 22, "world"))
        for number, (x, y, view) in enumerate(((-80, 20, VIEWS[0]), (80, -20, VIEWS[3]))):
            corners = " ".join(f"{px:g},{py:g}" for px, py in (at(x, y), at(x - 22, y - 42), at(x + 22, y - 42)))
            lines.append(f'<polygon points="{corners}" fill="{view}"/>')
            lines.append(arrow((world[0] + 6, world[1] - 6), at(x, y + 6)))
            label = at(x, y - 64)
            lines.append(text(label[0], label[1] + 5, f"view {number + 1}"))
        lines += [arrow(at(-50, 4), at(50, -22), VIEWS[2]), text(190 + shift, 300, f"poses {name}")]
    lines += [text(400, 150, "V₁ V₂⁻¹"), text(400, 172, "is the same", "note")]
    return drawing("The same two cameras in two worlds have the same relative pose", 820, 320, lines)


def room_path() -> Image.Image:
    """The picture of `import-cameras`, of a rendered room."""
    with TemporaryDirectory() as root:
        rooms = Rooms(scenes=(1, 1, 1), root=root, workers=1)
        rooms.prepare()
        (scene,) = rooms.scenes("test")
        view = SceneDataset([scene], UniformSampler(), 12, PixelBounds()).open(0).view()
        return camera_map(replace(view, depth=None), range(0, view.video.num_frames, 4), "kitchen")


FIGURES = {"tokens.svg": tokens, "cameras.svg": cameras, "encodings.svg": encodings, "exact.svg": exact}

if __name__ == "__main__":
    for file, draw in FIGURES.items():
        (FOLDER / file).write_text(draw(), encoding="utf-8")
    room_path().save(FOLDER.parent / "tutorials" / "path.png")
