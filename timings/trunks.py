"""Forward time and peak memory of activations of two trunks, bounded below by a matrix product of the same FLOPs.

Times are medians of interleaved repeats. Memory is measured in a separate process, as the growth of the resident set
(CPU) or of the allocator's peak (CUDA). On CUDA in bfloat16, only flash attention is used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from timings.measure import in_a_process, interleaved, peak_growth
from timings.tables import markdown

Forward = Callable[[Tensor], object]


@dataclass
class Comparison:
    """Two ways to compute a trunk.

    Args:
        module: Module that is run to measure the memory of one way, such as `timings.vggt`.
        names: Names of the two ways. The first is ours.
        build: Builds the named forward passes, given the command-line options.
        flops: FLOPs of one forward pass, two per multiply-add, given the options and the number of frames.
        width: Channels of the tokens of a size.
    """

    module: str
    names: tuple[str, str]
    build: Callable[[argparse.Namespace, Collection[str]], Mapping[str, Forward]]
    flops: Callable[[argparse.Namespace, int], float]
    width: Callable[[str], int]


def parse(description: str | None, known: Collection[str], **defaults: object) -> argparse.ArgumentParser:
    """Return a parser for the options of a benchmark of trunks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+")
    parser.add_argument("--sizes", nargs="+", choices=known)
    parser.add_argument("--height", type=int, default=252)
    parser.add_argument("--width", type=int, default=336)
    parser.add_argument(
        "--dtypes", nargs="+", choices=("float32", "bfloat16"), help="by default those that the device computes fast"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3, help="at least 1")
    parser.add_argument("--memory-of", help="print only the memory of one forward pass")
    parser.set_defaults(**defaults)
    return parser


def compare(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Print a table per size and dtype, or the memory of one forward pass."""
    torch.set_num_threads(arguments.threads)
    for size in arguments.sizes:
        for dtype in arguments.dtypes or native_dtypes(arguments.device):
            arguments.size, arguments.dtype = size, dtype
            if arguments.memory_of:
                print(json.dumps(memory_of_one_forward(comparison, arguments)))
            else:
                table(comparison, arguments)


def native_dtypes(device: str) -> list[str]:
    """Return the dtypes in which a device computes fast."""
    if device == "cuda":
        return ["bfloat16"]
    abilities = torch.cpu.get_capabilities()
    has_bfloat16 = abilities.get("amx_bf16") or abilities.get("avx512_bf16")
    return ["float32", "bfloat16"] if has_bfloat16 else ["float32"]


def table(comparison: Comparison, arguments: argparse.Namespace) -> None:
    """Print one row per number of frames."""
    a, b = comparison.names
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{arguments.threads} CPU threads"
    size = f"{arguments.size}, {arguments.height} x {arguments.width}"
    print(f"\n{size}, {arguments.dtype}, {where}, torch {torch.__version__}\n")
    # memory first, because the model of the timings would leave a small machine too little for a second one
    memory = {n: [memory_in_a_process(comparison, arguments, n, way) for way in (a, b)] for n in arguments.frames}
    ways = comparison.build(arguments, (a, b))
    rows = []
    for frames in arguments.frames:
        ours, theirs = memory[frames]
        if ours is None or theirs is None:
            rows.append({"frames": frames, "TFLOP": "doesn't fit into this machine's memory"})
            continue
        flops = comparison.flops(arguments, frames)
        width = comparison.width(arguments.size)
        one, other, bound = seconds_of(arguments, [ways[a], ways[b]], frames, flops, width)
        row = {"frames": frames, "TFLOP": f"{flops / 1e12:.3g}"}
        row |= {f"{a}, s": f"{one:.3f}", f"{b}, s": f"{other:.3f}", "product, s": f"{bound:.3f}"}
        row |= {f"{a} / {b}": f"{one / other:.2f}", f"{a} / product": f"{one / bound:.2f}"}
        row |= {
            f"{a}, MiB": f"{ours / 2**20:.0f}",
            f"{b}, MiB": f"{theirs / 2**20:.0f}",
            "ratio": f"{ours / theirs:.2f}",
        }
        rows.append(row)
    print(markdown(rows), flush=True)


def seconds_of(
    arguments: argparse.Namespace, ways: Sequence[Forward], frames: int, flops: float, width: int
) -> list[float]:
    """Return the medians of both ways and of the product."""
    images = random_images(arguments, frames)
    calls = [*(lambda way=way: way(images) for way in ways), product(arguments, frames, flops, width)]
    work = {str(number): call for number, call in enumerate(calls)}
    with torch.inference_mode(), attention(arguments):
        for way in ways:  # warm-up on a CPU, which sets up threads: a small input is enough
            way(images[:, :3, :, :28, :28])
        # a GPU chooses kernels by shape
        seconds = interleaved(work, arguments.repeats, arguments.device, warm_up=arguments.device == "cuda")
    return [statistics.median(rounds) for rounds in seconds.values()]


def attention(arguments: argparse.Namespace) -> AbstractContextManager:
    """Require flash attention on CUDA in bfloat16. Elsewhere SDPA chooses."""
    if arguments.device == "cuda" and arguments.dtype == "bfloat16":
        return sdpa_kernel(SDPBackend.FLASH_ATTENTION)
    return nullcontext()


def random_images(arguments: argparse.Namespace, frames: int) -> Tensor:
    """Return random images of one scene."""
    return torch.rand(1, frames, 3, arguments.height, arguments.width, device=arguments.device)


def fill(module: nn.Module, arguments: argparse.Namespace) -> nn.Module:
    """Give a module on the meta device frozen random weights, in the dtype and on the device of a table."""
    module.to(getattr(torch, arguments.dtype)).to_empty(device=arguments.device)
    torch.manual_seed(0)
    for parameter in module.requires_grad_(False).parameters():
        parameter.normal_(std=parameter[0].numel() ** -0.5) if parameter.ndim > 1 else parameter.normal_(0.5, 0.2)
    return module.eval()


def block_flops(width: int, tokens: int, context: int) -> float:
    """Count the FLOPs of products and attention in a transformer block, about 99 % of the total."""
    return tokens * (24 * width**2 + 4 * context * width)


def num_patches(arguments: argparse.Namespace) -> int:
    """Return the number of patches of a frame."""
    return (arguments.height // 14) * (arguments.width // 14)


def product(arguments: argparse.Namespace, frames: int, flops: float, width: int) -> Callable[[], None]:
    """Repeat the first product of an MLP on all tokens until it has as many FLOPs."""
    tokens = frames * (1 + num_patches(arguments))
    options = {"dtype": getattr(torch, arguments.dtype), "device": arguments.device}
    a, b = torch.randn(tokens, width, **options), torch.randn(width, 4 * width, **options)
    out = torch.empty(tokens, 4 * width, **options)
    times = max(1, round(flops / (8 * tokens * width**2)))

    def run() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    return run


def memory_in_a_process(comparison: Comparison, arguments: argparse.Namespace, frames: int, way: str) -> int | None:
    """Return the bytes of activations, or None if the machine has too little memory."""
    options = {name: getattr(arguments, name) for name in ("height", "width", "device", "threads")}
    options |= {"memory_of": way, "frames": frames, "dtypes": arguments.dtype, "sizes": arguments.size}
    try:
        return in_a_process(comparison.module, **options)
    except MemoryError:
        return None


def memory_of_one_forward(comparison: Comparison, arguments: argparse.Namespace) -> int:
    """Return the bytes that a forward pass needs beyond the model and the images."""
    forward = comparison.build(arguments, (arguments.memory_of,))[arguments.memory_of]
    images = random_images(arguments, arguments.frames[0])
    with torch.inference_mode(), attention(arguments):
        forward(images[:, :1, :, :28, :28])  # warm-up: kernels and threads are set up once
        return peak_growth(lambda: forward(images), arguments.device)
