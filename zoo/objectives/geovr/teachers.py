"""The 3D teachers of GeoVR, and which decoder layers learn from which of their layers."""

from __future__ import annotations

from typing import Literal, NamedTuple

from zoo.errors import check_choice

TeacherName = Literal["vggt", "vggt_omega", "da3"]


class TeacherLayout(NamedTuple):
    """A frozen model of geometry.

    Attributes:
        num_layers: Layers of its trunk.
        depth: Those, from 0, whose fraction of the trunk gives the decoder layers that the depth head reads.
        distill: Those whose tokens are distilled.
        width: Channels of these tokens.
        side: Of a double patch, in pixels: one token of the vision tower sees as much of the image.
        longest: Pixels of the longer side of its images.
    """

    num_layers: int
    depth: tuple[int, ...]
    distill: tuple[int, ...]
    width: int
    side: int
    longest: int


VGGT_LAYERS = (4, 11, 17, 23)
TEACHERS: dict[str, TeacherLayout] = {
    "vggt": TeacherLayout(24, VGGT_LAYERS, VGGT_LAYERS, 1024, 28, 504),
    "vggt_omega": TeacherLayout(24, VGGT_LAYERS, VGGT_LAYERS, 1024, 32, 512),
    "da3": TeacherLayout(40, (19, 27, 33, 39), (18, 26, 32, 38), 1536, 28, 504),
}


def find_teacher(name: str) -> TeacherLayout:
    """Return the teacher of this name.

    Raises:
        InputError: There is none.
    """
    check_choice("teacher", name, TeacherName)
    return TEACHERS[name]


def matching_layers(layers: tuple[int, ...], num_layers: int, decoder_layers: int) -> tuple[int, ...]:
    """Return the decoder's hidden states at the same fraction of its depth as layers of a teacher.

    Args:
        layers: Of the teacher, from 0.
        num_layers: Of the teacher.
        decoder_layers: Of the decoder. Index 0 is its input, i the output of layer i - 1, and the last index, which
            is `decoder_layers`, the output of the final norm.
    """
    return tuple(round((layer + 1) / num_layers * decoder_layers) for layer in layers)  # half to even, as published


def geovr_layers(teacher: str, decoder_layers: int) -> dict[str, tuple[int, ...]]:
    """Return the hidden states that the heads for `depth` and `distill` read, see `matching_layers`.

    Example:
        >>> geovr_layers("vggt", 28)["depth"]
        (6, 14, 21, 28)
    """
    own = find_teacher(teacher)
    return {
        "depth": matching_layers(own.depth, own.num_layers, decoder_layers),
        "distill": matching_layers(own.distill, own.num_layers, decoder_layers),
    }


def teacher_size(teacher: str, height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of a teacher's images for frames of this size, in whole double patches."""
    own = find_teacher(teacher)
    scale = own.longest / max(height, width)

    def fit(side: int) -> int:
        return own.longest if side == max(height, width) else max(1, round(side * scale / own.side)) * own.side

    return fit(height), fit(width)
