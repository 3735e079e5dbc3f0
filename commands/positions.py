"""python main.py positions: which channels of a decoder's heads hold time, height, width and the camera.

    python main.py positions --config qwen3_vl.yaml --config scale_qwen3vl_4b.yaml
    python main.py positions --config prope.yaml --model.camera_encoding PoseAxis --model.camera_encoding.count 4

takes the options of a run. RoPE turns the channels c and c + F of a head as a pair, at one of F frequencies; each
frequency belongs to one axis of mRoPE. A wavelength is the number of positions of a full turn. A hybrid decoder's Gated
DeltaNet layers have heads of their own, without RoPE. The model's weights are not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence, Set
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from commands.defaults import with_defaults
from commands.run_options import OF_RUNS, run_parser
from zoo.encodings import CameraEncoding, PoseAxis
from zoo.encodings.decoder_layout import DecoderLayout
from zoo.encodings.placements import AXES, LINEAR, DeltaNetLayers, LayerSubset
from zoo.model import SpatialVLM
from zoo.tasks import VideoQATask

WIDTH = 120  # of the table, so that a narrow terminal breaks lines instead of cells


def positions(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `positions`, with config names resolved.
    """
    model = parse(arguments)
    layout = model.backbone.decoder_layout
    head, encoding = layout.head, model.camera_encoding
    pose = pose_axes(encoding)
    rows = {name: head.frequencies(axis) for axis, name in enumerate(AXES)}
    for axis in pose:
        rows["p"] = axis.chosen(head)
        rows["t"] = [number for number in rows["t"] if number not in rows["p"]]
    table = Table("axis", "frequencies", f"channels of {head.dim}", "wavelengths, positions", box=None, pad_edge=False)
    for name, numbers in rows.items():
        lengths = (2 * math.pi / layout.rope_frequencies[0][numbers]).tolist()
        ends = f"{lengths[0]:,.0f} to {lengths[-1]:,.0f}" if lengths else "-"
        table.add_row(name, f"{len(numbers)}: {ranges(numbers)}", ranges(sorted(head.pairs(numbers))), ends)
    if head.num_rotated < head.dim:
        table.add_row("none", "", ranges(range(head.num_rotated, head.dim)), "")
    touched = set() if encoding is None else encoding.touched_channels(head)
    if encoding is not None:
        add_camera(table, touched, "qkvo")
    console = Console(highlight=False, width=WIDTH)
    console.print(table)
    if layout.linear is not None:
        print(
            f"\nfull attention: layers {ranges(layout.layers)}; Gated DeltaNet: layers {ranges(layout.linear.layers)}"
        )
        if encoding is not None and encoding.chooses_linear_layers:
            table = Table("Gated DeltaNet", "", f"channels of {layout.linear.head.dim}", box=None, pad_edge=False)
            add_camera(table, touched, [f"{LINEAR} {term}" for term in "qkvo"])
            console.print(table)
    named = "none" if encoding is None else type(encoding).__name__
    print(f"time index: {type(model.time_index).__name__}; camera encoding: {named}")
    for part, acting in layer_subsets(encoding, layout):
        print(f"{part} acts in layers {ranges(acting)}")


def add_camera(table: Table, touched: Set[tuple[str, int]], terms: Sequence[str]) -> None:
    """Add a row per term with the channels that an encoding transforms."""
    for term in terms:
        channels = sorted(channel for each, channel in touched if each == term)
        table.add_row(f"camera, {term[-1]}", "", ranges(channels))


def parse(arguments: list[str]) -> SpatialVLM:
    """Build what decides positions on the meta device: backbone, camera encoding and time index, without weights."""
    parser = run_parser("positions", __doc__, ("data", "seed_everything", *OF_RUNS))
    parser.add_subclass_arguments(VideoQATask, "model", fail_untyped=False, required=True)
    settings = parser.parse_args(with_defaults(arguments))
    options = settings.model.init_args
    parts = {name: options.get(name) for name in ("backbone", "camera_encoding", "time_index")}
    settings.model = Namespace(class_path=VideoQATask.__qualname__, init_args=Namespace(**parts))
    with torch.device("meta"):
        built: Any = parser.instantiate_classes(settings)
    model: SpatialVLM = built.model.model
    return model


def pose_axes(encoding: CameraEncoding | None) -> list[PoseAxis]:
    """Return the pose axes of an encoding, also of the parts of a `Compose`."""
    return [] if encoding is None else [part for part in encoding.modules() if isinstance(part, PoseAxis)]


def layer_subsets(encoding: CameraEncoding | None, layout: DecoderLayout) -> Iterator[tuple[str, list[int]]]:
    """Yield each part of an encoding that acts in some layers of its kind alone, and these."""
    parts = [] if encoding is None else list(encoding.modules())
    in_linear = {each for part in parts if isinstance(part, DeltaNetLayers) for each in part.modules()}
    for part in parts:
        if isinstance(part, LayerSubset):
            own = layout.linear if part in in_linear and layout.linear is not None else layout
            yield type(part.encoding).__name__, [layer for layer in own.layers if part.acts_in(layer)]


def ranges(numbers: Sequence[int]) -> str:
    """Write sorted numbers as ranges with their step: `0-57/3, 60-63`.

    Example:
        >>> ranges([0, 1, 2, 5, 8, 11, 20])
        '0-2, 5-11/3, 20'
    """
    written, start = [], 0
    while start < len(numbers):
        end, step = start + 1, numbers[start + 1] - numbers[start] if start + 1 < len(numbers) else 1
        while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        if step > 1 and end - start < 3:
            end = start + 1
        text = f"{numbers[start]}-{numbers[end - 1]}" if end > start + 1 else str(numbers[start])
        written.append(text + (f"/{step}" if step > 1 and end > start + 1 else ""))
        start = end
    return ", ".join(written) or "-"
