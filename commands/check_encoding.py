"""python main.py check-encoding: measure an encoding's symmetries, channels and cost, or how it disturbs a model.

    python main.py check-encoding my_encoding.MyEncoding
    python main.py check-encoding PRoPE --encoding.placement TemporalSection --encoding.apply_to qk
    python main.py check-encoding PRoPE --backbone PretrainedSmolLM2
    python main.py check-encoding PRoPE --run runs/Qwen25VL-20261125-012048

The encoding is a class of the zoo or of a module in the current folder. The command runs a reference attention in
float64 for each model that the encoding fits: with small heads like those of Qwen2.5-VL, of Qwen3-VL, and of Qwen3.5
beside Gated DeltaNet. Each symmetry that the class declares (`symmetries`) must hold. Each other symmetry must be
broken. Controls show that the measurement would detect an error: the cameras change the outputs, other cameras change
them differently, and camera-to-world poses, the usual mistake, break CaPE's invariance to the world. docs/encodings.md
explains the rows.

A table per model then lists which channels of a head hold time (t), height (h), width (w) and the camera. RoPE turns
the channels c and c + F of a head as a pair, at one of F frequencies. Each frequency belongs to one axis of mRoPE. A
wavelength is the number of positions in a full turn. The Gated DeltaNet layers of Qwen3.5 have separate heads, without
RoPE.

With --backbone or --run the command measures the disturbance instead: how much the loss of a pretrained decoder rises,
before any training, when the encoding is installed. --backbone measures it on text, of which eight blocks have the
cameras of a walk through a room. --run measures it on the answers of a run's data, with the run's weights, and on text
if the decoder's weights were released. The run must be without an encoding, such as a test of the released weights. The
table varies the encoding: its terms, layers, strength and channels. docs/encodings.md says how to read it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from commands.disturbance import PosedText, Reading, VideoAnswers, disturbance_table, without_encoding
from commands.parser import build, command_parser, parse
from commands.runs import find_run, load_run
from datamodules.sources.base import Split
from zoo.backbones import BackboneLoader
from zoo.backbones.pretrained import released_layouts
from zoo.cameras import Cameras
from zoo.cameras.poses import invert_se3
from zoo.encodings import CameraEncoding, CaPE, DeltaNetLayers, LayerSubset, PoseAxis
from zoo.encodings.base import DecoderLayout, HeadLayout, Symmetries
from zoo.encodings.compose import LINEAR
from zoo.encodings.placements import AXES, Matrices
from zoo.encodings.testing import (
    LAYOUTS,
    PROPERTIES,
    Decoder,
    attend,
    effect,
    holds,
    mrope,
    other_cameras,
    random_cameras,
    random_sequence,
    world_views,
)
from zoo.errors import InputError
from zoo.model import SpatialVLM

MOVES = 1e-3  # smallest change of the outputs that cameras must cause
MODELS = {"Qwen2.5-VL": "axes in a row", "Qwen3-VL": "axes in turns", "Qwen3.5": "part of the channels"}  # in LAYOUTS
VIEWS, TOKENS, REPEATS = 8, 64, 5  # for the measurement of costs; tokens per view, a square
Make = Callable[[], CameraEncoding]


class Fit(NamedTuple):
    """A model that an encoding fits.

    Attributes:
        head: Small heads like the model's, for measuring symmetries.
        declared: The symmetries that the encoding declares for this model.
        decoder: Layout of the released model's decoder.
    """

    head: HeadLayout
    declared: Symmetries
    decoder: DecoderLayout


def find_fits(make: Make) -> dict[str, Fit]:
    """Return the models that an encoding fits, by their names.

    Raises:
        InputError: There is none.
    """
    fits, misfits = {}, []
    for name, decoder in released_layouts().items():
        encoding, head = make(), LAYOUTS[MODELS[name]]
        try:
            make().bind_to_decoder(decoder, decoder.layers)
            Decoder(encoding, head=head)
        except InputError as error:
            misfits.append(f"with heads like {name}'s: {error}")
        else:
            fits[name] = Fit(head, encoding.symmetries, decoder)
    if not fits:
        raise InputError("; ".join(misfits))
    return fits


def camera_to_world_cape() -> CaPE:
    """Return the control: CaPE with camera-to-world poses, which is not invariant to the world."""
    cape = CaPE()

    def matrices(cameras: Cameras) -> Matrices:
        return CaPE.matrices(cape, cameras.with_poses(invert_se3(cameras.world_to_camera)))

    cape.matrices = matrices  # type: ignore[method-assign]  # not a class, which would be listed as an encoding
    return cape


def check_encoding(arguments: list[str]) -> None:
    """Run the command.

    Args:
        arguments: The command line after `check-encoding`.

    Raises:
        InputError: A symmetry differs from the declaration, or the cameras have no effect.
    """
    parser = command_parser("check-encoding", __doc__)
    parser.add_subclass_arguments(CameraEncoding, "encoding", required=True)
    parser.add_subclass_arguments(BackboneLoader, "backbone", required=False, help="disturb these weights, on text")
    parser.add_argument("--run", type=str | None, default=None, help="disturb this run's model, on its answers")
    parser.add_argument("--split", type=Split, default="test", help="which scenes of the run's data, with --run")
    parser.add_argument("--scenes", type=int, default=20, help="largest number of scenes, with --run")
    parser.add_argument("--device", type=str | None, default=None, help="null uses a GPU if there is one, else the CPU")
    trust_help = "modules that someone else's run may import"
    parser.add_argument("--trust_modules", type=str, nargs="+", default=[], help=trust_help)
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--encoding", *arguments]
    settings = parse(parser, arguments)

    def make() -> CameraEncoding:
        encoding: CameraEncoding = build(parser, settings).encoding
        return encoding

    if settings.backbone is not None or settings.run is not None:
        print_disturbance(make, build(parser, settings).get("backbone"), settings)
        return
    name, fits = type(make()).__name__, find_fits(make)
    table = Table("symmetry", "declared", *MODELS, "", box=None, pad_edge=False)
    wrong = []

    def add_row(title: str, declared: str, changes: dict[str, float], verdict: str) -> None:
        table.add_row(title, declared, *(f"{changes[m]:.1e}" if m in changes else "-" for m in MODELS), verdict)

    for measure in PROPERTIES:
        title = measure.__name__
        states = {model: bool(getattr(fit.declared, title)) for model, fit in fits.items()}
        changes = {model: measure(make(), fit.head) for model, fit in fits.items()}
        verdict = ""
        for stated in {state for model, state in states.items() if holds(title, changes[model]) is not state}:
            verdict = "broken" if stated else "holds, or is not seen"
            wrong.append(f"{title} is {'declared' if stated else 'not declared'} and {verdict}")
        where = [model for model, state in states.items() if state]
        add_row(title, "no" if not where else "yes" if len(where) == len(fits) else ", ".join(where), changes, verdict)
    for title, measure in (("control: cameras", effect), ("control: others", other_cameras)):
        changes = {model: measure(make(), fit.head) for model, fit in fits.items()}
        least = min(changes.values())
        if least < MOVES and (measure is effect or (make().uses_cameras and not make().uses_points)):
            wrong.append(f"{title.removeprefix('control: ')} move the outputs by {least:.1e} alone")
        add_row(title, "", changes, "must move")
    control = {model: world_views(camera_to_world_cape(), fit.head) for model, fit in fits.items()}
    add_row("control: world_views of c2w", "", control, "must move")
    console = Console(highlight=False, width=120)
    console.print(f"{name}: largest change of the outputs, in float64")
    console.print(table)
    for model, fit in fits.items():
        print_channels(console, make(), model, fit.decoder)
    model, fit = next(iter(fits.items()))
    console.print("")
    console.print(describe_cost(make, model, fit.decoder))
    if wrong:
        raise InputError(f"{name}: {'; '.join(wrong)}: mend the encoding, or its `symmetries`")


def print_disturbance(make: Make, loader: BackboneLoader | None, settings: Namespace) -> None:
    """Print how much the variants of an encoding raise the loss of a pretrained model, see `commands.disturbance`.

    Args:
        make: Builds the encoding as given.
        loader: The weights. None are those of the run.
        settings: The settings of the command.

    Raises:
        InputError: The model or the run can't be read or disturbed, or the encoding does not fit.
    """
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    readings: list[Reading] = []
    if loader is not None and settings.run is not None:
        raise InputError("--backbone and --run each name a model: leave one of them out")
    if loader is not None:
        readings.append(PosedText(SpatialVLM(loader).to(device).requires_grad_(False).eval()))
    else:
        run = load_run(
            find_run(settings.run), without_encoding, settings.split, settings.scenes, device, settings.trust_modules
        )
        readings.append(VideoAnswers(run, make))
        if run.model.loader.is_pretrained:
            readings.append(PosedText(run.model))
    console = Console(highlight=False, width=120)
    for reading in readings:
        console.print(disturbance_table(reading, make))


def print_channels(console: Console, encoding: CameraEncoding, model: str, decoder: DecoderLayout) -> None:
    """Print which channels of a released model's heads hold time, height, width and the camera."""
    encoding.bind_to_decoder(decoder, decoder.layers)
    head, touched = decoder.head, encoding.touched_channels(decoder.head)
    rows = {name: head.frequencies(axis) for axis, name in enumerate(AXES)}
    for part in encoding.modules():
        if isinstance(part, PoseAxis):
            rows["p"] = part.chosen(head)
            rows["t"] = [number for number in rows["t"] if number not in rows["p"]]
    table = Table(model, "frequencies", f"channels of {head.dim}", "wavelengths, positions", box=None, pad_edge=False)
    for name, numbers in rows.items():
        lengths = (2 * math.pi / decoder.rope_frequencies[0][numbers]).tolist()
        ends = f"{lengths[0]:,.0f} to {lengths[-1]:,.0f}" if lengths else "-"
        table.add_row(name, f"{len(numbers)}: {ranges(numbers)}", ranges(sorted(head.pairs(numbers))), ends)
    if head.num_rotated < head.dim:
        table.add_row("none", "", ranges(range(head.num_rotated, head.dim)), "")
    add_camera(table, touched, "qkvo")
    console.print("", table)
    if decoder.linear is not None and encoding.chooses_linear_layers:
        table = Table("Gated DeltaNet", "", f"channels of {decoder.linear.head.dim}", box=None, pad_edge=False)
        add_camera(table, touched, [f"{LINEAR} {term}" for term in "qkvo"])
        console.print(table)
    for name, layers in layer_subsets(encoding, decoder):
        console.print(f"{name} acts in layers {ranges(layers)}")


def add_camera(table: Table, touched: Set[tuple[str, int]], terms: Sequence[str]) -> None:
    """Add a row per term with the channels that an encoding transforms."""
    for term in terms:
        channels = sorted(channel for each, channel in touched if each == term)
        table.add_row(f"camera, {term[-1]}", "", ranges(channels))


def layer_subsets(encoding: CameraEncoding, decoder: DecoderLayout) -> Iterator[tuple[str, list[int]]]:
    """Yield each part of an encoding that acts in only some layers of its kind, and these layers."""
    in_linear = {each for part in encoding.modules() if isinstance(part, DeltaNetLayers) for each in part.modules()}
    for part in encoding.modules():
        if isinstance(part, LayerSubset):
            own = decoder.linear if part in in_linear and decoder.linear is not None else decoder
            yield type(part.encoding).__name__, [layer for layer in own.layers if part.acts_in(layer)]


def ranges(numbers: Sequence[int]) -> str:
    """Write sorted numbers as ranges with their step: `0-57/3, 60-63`."""
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


@torch.no_grad()
def describe_cost(make: Make, model: str, decoder: DecoderLayout) -> str:
    """Describe parameters and time of an encoding in a released model's full attention, on this machine's CPU."""
    encoding, head, layers = make(), decoder.head, decoder.layers
    encoding.bind_to_decoder(decoder, layers)
    sizes = {"batch": 1, "views": VIEWS, "tokens": TOKENS, "heads": decoder.num_heads, "head_dim": head.dim}
    sequence = random_sequence(0, kv_heads=decoder.num_key_value_heads, **sizes)
    sequence.qkv = [each.float() for each in sequence.qkv]
    sequence.hidden_states = torch.randn(*sequence.index.shape, decoder.hidden_size)
    cameras, rope = sequence.cameras(*random_cameras(1, VIEWS)), mrope(sequence.ids, decoder.rope_frequencies[0], head)
    encoded = encoding.encode(cameras, head)
    once = _seconds(lambda: encoding.encode(cameras, head))
    parameters = sum(parameter.numel() for parameter in encoding.parameters())
    cost = (
        f"cost in {model}: {parameters:,} parameters; {VIEWS} views of {TOKENS} tokens on this CPU: "
        f"{1e3 * once:.2f} ms once"
    )
    number = next((each for each in layers if encoded.at_layer(each, sequence.hidden_states, rope) is not None), None)
    if number is None:  # the encoding acts in Gated DeltaNet only
        return cost
    layer, without = (_seconds(partial(attend, each, number, sequence, rope)) for each in (encoded, None))
    times = f"{1e3 * layer:.2f} ms per layer's attention, {1e3 * without:.2f} ms without"
    return f"{cost}, {times}: {layer / without:.2f} times"


def _seconds(call: Callable[[], Any]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
