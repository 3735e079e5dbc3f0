"""python main.py check-encoding: the symmetries of a camera encoding, measured, and what it costs.

    python main.py check-encoding my_encoding.MyEncoding
    python main.py check-encoding PRoPE --encoding.placement TemporalSection --encoding.apply_to qk

takes a class of the zoo or of a module in the current folder. Each symmetry that the class declares (`symmetries`) must
hold in a reference attention with Qwen2.5-VL's and with Qwen3-VL's heads in float64; each other one must be broken. The
controls show that the measurement would see it: the cameras change the outputs, other cameras change them otherwise,
and camera-to-world poses, the usual mistake, break CaPE's invariance to the world. docs/encodings.md explains the rows.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from commands.parser import OneLineParser
from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.encodings import CameraEncoding, CaPE
from zoo.encodings.decoder_layout import DecoderLayout, HeadLayout
from zoo.encodings.measured_symmetries import PROPERTIES, effect, holds, other_cameras, world_views
from zoo.encodings.placements import Matrices
from zoo.encodings.reference_attention import LAYOUTS, attend, mrope, random_cameras, random_sequence
from zoo.errors import InputError

MOVES = 1e-3  # what cameras must change at least
HEADS, KV_HEADS, HEAD = 16, 2, HeadLayout.in_row(128, (16, 24, 24))  # of Qwen2.5-VL-3B
VIEWS, TOKENS, REPEATS = 8, 64, 5  # of the measurement of costs; tokens per view, a square
Make = Callable[[], CameraEncoding]


def camera_to_world_cape() -> CaPE:
    """Return the control: CaPE of camera-to-world poses, which is not invariant to the world."""
    cape = CaPE()

    def matrices(cameras: Cameras) -> Matrices:
        return CaPE.matrices(cape, cameras.with_poses(invert_se3(cameras.world_to_camera)))

    cape.matrices = matrices  # type: ignore[method-assign]  # a class of its own would be listed among the encodings
    return cape


def check_encoding(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `check-encoding`.

    Raises:
        InputError: A symmetry is not as the class declares, or the cameras have no effect.
    """
    parser = OneLineParser(prog="main.py check-encoding", description=__doc__)
    parser.add_subclass_arguments(CameraEncoding, "encoding", required=True)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--encoding", *arguments]
    settings = parser.parse_args(arguments)

    def make() -> CameraEncoding:
        encoding: CameraEncoding = parser.instantiate_classes(settings).encoding
        return encoding

    name, declared = type(make()).__name__, make().symmetries
    layouts = {"Qwen2.5-VL": LAYOUTS["axes in a row"], "Qwen3-VL": LAYOUTS["axes in turns"]}
    table = Table("symmetry", "declared", *layouts, "", box=None, pad_edge=False)
    wrong = []
    for measure in PROPERTIES:
        title, states = measure.__name__, bool(getattr(declared, measure.__name__))
        changes = [measure(make(), head) for head in layouts.values()]
        found = {holds(title, change) for change in changes}
        verdict = "" if found == {states} else ("broken" if states else "holds, or is not seen")
        if verdict:
            wrong.append(f"{title} is {'declared' if states else 'not declared'} and {verdict}")
        table.add_row(title, "yes" if states else "no", *(f"{change:.1e}" for change in changes), verdict)
    for title, measure in (("control: cameras", effect), ("control: others", other_cameras)):
        changes = [measure(make(), head) for head in layouts.values()]
        if min(changes) < MOVES and (measure is effect or (make().uses_cameras and not make().uses_points)):
            wrong.append(f"{title.removeprefix('control: ')} move the outputs by {min(changes):.1e} alone")
        table.add_row(title, "", *(f"{change:.1e}" for change in changes), "must move")
    control = [world_views(camera_to_world_cape(), head) for head in layouts.values()]
    table.add_row("control: world_views of c2w", "", *(f"{change:.1e}" for change in control), "must move")
    console = Console(highlight=False, width=120)
    console.print(f"{name}: largest change of the outputs, in float64")
    console.print(table)
    console.print(describe_cost(make))
    if wrong:
        raise InputError(f"{name}: {'; '.join(wrong)}: mend the encoding, or its `symmetries`")


@torch.no_grad()
def describe_cost(make: Make) -> str:
    """Describe parameters and time of an encoding in a layer of Qwen2.5-VL-3B's size, on this machine's CPU."""
    encoding = make()
    frequencies = 1e6 ** -(torch.arange(HEAD.dim // 2) / (HEAD.dim // 2))
    encoding.bind_to_decoder(DecoderLayout(HEADS * HEAD.dim, 1, HEADS, KV_HEADS, HEAD, (frequencies,)), range(1))
    sizes = {"batch": 1, "views": VIEWS, "tokens": TOKENS, "heads": HEADS, "head_dim": HEAD.dim}
    sequence = random_sequence(0, kv_heads=KV_HEADS, **sizes)
    sequence.qkv = [each.float() for each in sequence.qkv]
    sequence.hidden_states = sequence.hidden_states.float()
    cameras, rope = sequence.cameras(*random_cameras(1, VIEWS)), mrope(sequence.ids, frequencies, HEAD)
    encoded = encoding.encode(cameras, HEAD)
    once = _seconds(lambda: encoding.encode(cameras, HEAD))
    layer, stock = (_seconds(partial(attend, each, 0, sequence, rope)) for each in (encoded, None))
    parameters = sum(parameter.numel() for parameter in encoding.parameters())
    return (
        f"cost: {parameters:,} parameters; {VIEWS} views of {TOKENS} tokens on this CPU: {1e3 * once:.2f} ms once, "
        f"{1e3 * layer:.2f} ms per layer's attention, {1e3 * stock:.2f} ms without: {layer / stock:.2f} times"
    )


def _seconds(call: Callable[[], Any]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
